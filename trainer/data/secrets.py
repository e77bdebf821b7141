"""Secrets in source code, found by detect-secrets and overwritten: what a model learns, it can say."""

import re
import tempfile
from pathlib import Path
from typing import Self

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

# All of detect-secrets but public IP addresses, which are no secret.
PLUGINS = (
    *("ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "CloudantDetector"),
    *("DiscordBotTokenDetector", "GitHubTokenDetector", "GitLabTokenDetector", "IbmCloudIamDetector"),
    *("IbmCosHmacDetector", "JwtTokenDetector", "KeywordDetector", "MailchimpDetector", "NpmDetector"),
    *("OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector"),
    *("SoftlayerDetector", "SquareOAuthDetector", "StripeDetector", "TelegramBotTokenDetector", "TwilioKeyDetector"),
)
# Its filters of false alarms that look at the value alone.
FILTERS = (
    *("is_sequential_string", "is_potential_uuid", "is_likely_id_string", "is_templated_secret"),
    *("is_prefixed_with_dollar_sign", "is_indirect_reference", "is_not_alphanumeric_string"),
)
ENTROPY_LIMITS = {"Base64HighEntropyString": 4.5, "HexHighEntropyString": 3.0}  # bits a character; their defaults
# Only such lines can hold one: a long run of token characters, or a word that announces it. One line in ten.
SUSPICIOUS = re.compile(r"[A-Za-z0-9+/=_.-]{16,}|://|PuTTY|key|pass|pwd|secret|token|contrase|auth", re.IGNORECASE)
# What detect-secrets reports may be a part of the token (`ghp` of a GitHub token): the rest goes with it.
WHOLE = r"[A-Za-z0-9_-]*{}[A-Za-z0-9_.+/=-]*"
# Detect-secrets finds a private key's first line; the key is below it.
KEY_BLOCK = re.compile(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)(?:(?!-----BEGIN).)*?(?:-----END[^\n-]*-----|\Z)", re.S
)


class Redactor:
    """Overwrites secrets in texts. Use it as a context: detect-secrets' settings are global to the process."""

    def __enter__(self) -> Self:
        limits = [{"name": name, "limit": limit} for name, limit in ENTROPY_LIMITS.items()]
        plugins = [*({"name": name} for name in PLUGINS), *limits]
        filters = [{"path": f"detect_secrets.filters.heuristic.{name}"} for name in FILTERS]
        self._settings = transient_settings({"plugins_used": plugins, "filters_used": filters})
        self._settings.__enter__()
        self._folder = tempfile.TemporaryDirectory(prefix="ratchet-secrets-")
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()
        self._settings.__exit__(*error)  # type: ignore[arg-type]

    def redact(self, text: str, suffix: str = ".py") -> tuple[str, list[tuple[int, str]]]:
        """(the text with each secret's value as REDACTED, [(line number from 1, type of secret)])."""
        text, found = _without_key_blocks(text)
        lines = text.split("\n")
        numbers = [number for number, line in enumerate(lines) if SUSPICIOUS.search(line)]
        if not numbers:
            return text, found
        # Of the languages that it does not know, detect-secrets takes every `key = value` for one in quotes or not.
        path = Path(self._folder.name) / f"code{suffix if suffix in ('.go', '.java', '.js') else '.py'}"
        path.write_text("\n".join(lines[number] for number in numbers) + "\n", encoding="utf-8", errors="replace")
        for secret in scan_file(str(path)):
            number = numbers[secret.line_number - 1]
            if secret.secret_value and secret.secret_value in lines[number]:
                lines[number] = re.sub(WHOLE.format(re.escape(secret.secret_value)), "REDACTED", lines[number])
                found.append((number + 1, secret.type))
        return "\n".join(lines), found


def _without_key_blocks(text: str) -> tuple[str, list[tuple[int, str]]]:
    if "PRIVATE KEY" not in text:
        return text, []
    found: list[tuple[int, str]] = []

    def replace(match: re.Match[str]) -> str:
        found.append((text.count("\n", 0, match.start()) + 1, "Private Key"))
        return "REDACTED PRIVATE KEY"

    return KEY_BLOCK.sub(replace, text), found

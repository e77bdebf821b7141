"""`make env`: the Compose stack's .env and its secrets.

python3 infra/environment.py [FOLDER]     # needs nothing but Python

Writes what is missing and keeps what is there: settings that you changed, secrets in use. The secrets are files in
.secrets, a folder that only you may enter; each file may be read by all, since Compose mounts it as it is and the
containers run as users of their own. Base images made by `make offline-images` (.env.offline) are entered in .env.
"""

import hashlib
import os
import re
import secrets
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parent / "env" / "stack.env"
OFFLINE = ".env.offline"
TOKENS = "SERVING_TOKENS_FILE"  # hashes of the tokens that serving takes (serving.access)
TOKEN = "serving_token"  # the first of them, beside that file


class InputError(Exception):
    """Bad input; the command exits with 2."""


def write(folder: Path) -> list[str]:
    """Make FOLDER's .env and .secrets complete. Returns a line for each thing done, without any secret.

    Raises InputError for a secret file that .env names elsewhere and that is not there.
    """
    done = []
    env_file = folder / ".env"
    text = env_file.read_text() if env_file.exists() else TEMPLATE.read_text()
    defaults = {name: path for name, path in values(TEMPLATE.read_text()).items() if name.endswith("_FILE")}
    if (folder / OFFLINE).exists():
        stand_ins = values((folder / OFFLINE).read_text())
        chosen = {name for name, image in values(text).items() if image and not image.startswith("ratchet-offline/")}
        before, text = text, _set(text, {name: image for name, image in stand_ins.items() if name not in chosen})
        if text != before:
            done.append(f"base images from {OFFLINE}: {', '.join(stand_ins.values())}")
    text = _set(text, {name: path for name, path in defaults.items() if not values(text).get(name)})
    for name, default in defaults.items():
        path = values(text)[name]
        if (folder / path).exists():
            continue
        if path != default:
            raise InputError(f"{name} is {path!r} in {env_file}, which is no file. Write it, or remove the line.")
        if name == TOKENS:
            _write_token(folder / path)
            done.append(f"a token for serving in {Path(path).parent / TOKEN}, its hash in {path}")
        else:
            _write_secret(folder / path)
            done.append(f"a random secret in {path}")
    if (folder / ".secrets").is_dir():
        (folder / ".secrets").chmod(0o700)
    if not env_file.exists() or env_file.read_text() != text:
        done.append(".env" if env_file.exists() else ".env, from infra/env/stack.env")
        _replace(env_file, text, 0o600)
    env_file.chmod(0o600)
    return done


def values(text: str) -> dict[str, str]:
    """The variables of an env file's text, as Compose reads them: quotes and comments taken off."""
    found = {}
    for name, value in re.findall(r"^[ \t]*(?:export[ \t]+)?(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE):
        quoted = re.match(r"""(['"])(.*?)\1""", value)
        found[name] = quoted[2] if quoted else re.sub(r"(^|[ \t]+)#.*", "", value)
    return found


def _set(text: str, wanted: dict[str, str]) -> str:
    """Give variables a value in an env file's text: where they stand, commented out or not, else at its end."""
    for name, value in wanted.items():
        line = f"{name}={value}"
        literally = line.replace("\\", r"\\")  # re reads backslashes in a replacement
        text, count = re.subn(rf"^#?{name}=.*$", literally, text, count=1, flags=re.MULTILINE)
        if not count:
            text = f"{text.rstrip()}\n{line}\n"
    return text


def _write_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    _replace(path, secrets.token_urlsafe(32), 0o444)


def _write_token(path: Path) -> None:
    """A first token for serving: itself for its owner alone, and its hash, which the container gets.

    As serving.access makes one; that needs more than Python, and this runs before anything is installed.
    """
    token = f"rt-{secrets.token_urlsafe(32)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    _replace(path.with_name(TOKEN), token, 0o400)
    # Written to later, by `python -m serving.access add`.
    _replace(path, f"owner:{hashlib.sha256(token.encode()).hexdigest()}\n", 0o644)


def _replace(path: Path, text: str, mode: int) -> None:
    """Write aside and rename: nobody ever reads half a file, and nobody else reads it meanwhile."""
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    aside.chmod(mode)
    aside.replace(path)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    try:
        done = write(folder)
    except InputError as error:
        print(f"make env: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"make env: {error.filename} cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    for line in done or ["nothing: .env and its secrets are complete"]:
        print(f"Wrote {line}")
    print("Next: docker compose up -d --wait")


if __name__ == "__main__":
    main()

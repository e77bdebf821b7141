"""`make env` and `make env-prod`: the Compose stack's .env and its secrets.

python3 infra/environment.py [--production] [FOLDER]     # needs nothing but Python

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
PRODUCTION = Path(__file__).parent / "env" / "prod.env"
OFFLINE = ".env.offline"
TOKENS = "SERVING_TOKENS_FILE"  # hashes of the tokens that serving takes (serving.gateway.tokens)
TOKEN = "serving_token"  # the first of them, beside that file
MONITORING = "MONITORING_TOKEN_FILE"  # a token that Prometheus reads, with its hash among the others
DATABASE = "POSTGRES_PASSWORD_FILE"  # in production the database is there already, and its password too
# What only the owner of a stack in production knows.
ASKED = ("RATCHET_TAG", "RATCHET_DOMAIN", "AWS_REGION", "DATABASE_HOST", "S3_BUCKET", "S3_BUCKET_OWNER")
# What MLflow's client looks for in ~/.mlflow/credentials.
CREDENTIALS = "[mlflow]\nmlflow_tracking_username = {}\nmlflow_tracking_password = {}\n"


class InputError(Exception):
    """Bad input; the command exits with 2."""


def write(folder: Path, production: bool = False) -> list[str]:
    """Make FOLDER's .env and .secrets complete. Returns a line for each thing done, without any secret.

    Raises InputError for a secret file that .env names elsewhere and that is not there, for one that only its owner can
    write, and for an .env that is the other stack's.
    """
    done = []
    env_file, template = folder / ".env", PRODUCTION if production else TEMPLATE
    text = env_file.read_text() if env_file.exists() else template.read_text()
    if production != ("docker-compose.prod.yml" in values(text).get("COMPOSE_FILE", "")):
        raise InputError(
            f"{env_file} is that of the {'local stack' if production else 'stack in production'}: "
            f"COMPOSE_FILE is {values(text).get('COMPOSE_FILE', '')!r}. Use another folder for each, or move it away."
        )
    known = values(template.read_text())
    defaults = {name: path for name, path in known.items() if name.endswith("_FILE") and name != "COMPOSE_FILE"}
    if (folder / OFFLINE).exists():
        stand_ins = values((folder / OFFLINE).read_text())
        chosen = {name for name, image in values(text).items() if image and not image.startswith("ratchet-offline/")}
        before, text = text, _set(text, {name: image for name, image in stand_ins.items() if name not in chosen})
        if text != before:
            done.append(f"base images from {OFFLINE}: {', '.join(stand_ins.values())}")
    text = _set(text, {name: path for name, path in defaults.items() if not values(text).get(name)})
    for name, default in defaults.items():
        path = values(text)[name]
        if (folder / path).is_dir():
            raise InputError(
                f"{name} is {path!r}, which is a folder: Docker makes one of a file that is missing. Remove it."
            )
        if (folder / path).exists():
            continue
        if path != default:
            raise InputError(f"{name} is {path!r} in {env_file}, which is no file. Write it, or remove the line.")
        if name == TOKENS:
            _write_token(folder / path)
            done.append(f"a token for serving in {Path(path).parent / TOKEN}, its hash in {path}")
        elif name == MONITORING:
            _write_monitoring_token(folder / path, folder / values(text)[TOKENS])
            done.append(f"a token for Prometheus in {path}, its hash in {values(text)[TOKENS]}")
        elif name.endswith("_CREDENTIALS_FILE"):
            part = name.removesuffix("_CREDENTIALS_FILE").lower()
            _write_secret(folder / path, CREDENTIALS.format(part, secrets.token_urlsafe(32)))
            done.append(f"a random password for the user {part} in {path}")
        elif production and name == DATABASE:
            if values(text).get("DATABASE_AUTH") == "password":
                raise InputError(f"DATABASE_AUTH is 'password' in {env_file}: write the database's password to {path}.")
            _write_secret(folder / path, "")
        else:
            _write_secret(folder / path, secrets.token_urlsafe(32))
            done.append(f"a random secret in {path}")
    if (folder / ".secrets").is_dir():
        (folder / ".secrets").chmod(0o700)
    if not env_file.exists() or env_file.read_text() != text:
        done.append(".env" if env_file.exists() else f".env, from infra/env/{template.name}")
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


def _write_secret(path: Path, secret: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    _replace(path, secret, 0o444)


def _write_token(path: Path) -> None:
    """A first token for serving, an administrator's: itself for its owner alone (one that is there is kept); its hash
    for the container.

    As serving.gateway.tokens makes one; that needs more than Python, and this runs before anything is installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    if path.with_name(TOKEN).exists():
        token = path.with_name(TOKEN).read_text().strip()
    else:
        token = f"rt-{secrets.token_urlsafe(32)}"
        _replace(path.with_name(TOKEN), token, 0o400)
    # Written to later, by `python -m serving.gateway.tokens add`.
    _replace(path, f"owner:{hashlib.sha256(token.encode()).hexdigest()}:admin\n", 0o644)


def _write_monitoring_token(path: Path, tokens: Path) -> None:
    """A token for Prometheus, which runs as nobody; its hash goes to the end of those that serving takes."""
    token = f"rt-{secrets.token_urlsafe(32)}"
    known = [line for line in tokens.read_text().splitlines() if not line.startswith("monitoring:")]
    hashed = f"monitoring:{hashlib.sha256(token.encode()).hexdigest()}"
    with tokens.open("w") as file:  # in place: a container sees the file that it was given
        file.write("\n".join([*known, hashed, ""]))
    _write_secret(path, token)


def _replace(path: Path, text: str, mode: int) -> None:
    """Write aside and rename: nobody ever reads half a file, and nobody else reads it meanwhile."""
    aside = path.with_name(f"{path.name}.new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    aside.chmod(mode)
    aside.replace(path)


def main() -> None:
    production = "--production" in sys.argv
    (given,) = [argument for argument in sys.argv[1:] if argument != "--production"] or ["."]
    folder, command = Path(given), "make env-prod" if production else "make env"
    try:
        done = write(folder, production)
    except InputError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"{command}: {error.filename} cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    for line in done or ["nothing: .env and its secrets are complete"]:
        print(f"Wrote {line}")
    found = values((folder / ".env").read_text())
    if empty := [name for name in ASKED if production and not found.get(name)]:
        print(f"Next: give {', '.join(empty)} a value in .env")
    else:
        print("Next: docker compose up -d --wait" if production else "Next: make images up")


if __name__ == "__main__":
    main()

"""`make env`: the Compose stack's .env and its secrets.

python3 infra/environment.py [FOLDER]     # needs nothing but Python

Writes what is missing and keeps what is there: settings that you changed, secrets in use. The secrets are files in
.secrets, a folder that only you may enter; each file may be read by all, since Compose mounts it as it is and the
containers run as users of their own. Base images made by `make offline-images` (.env.offline) are entered in .env.
"""

import os
import re
import secrets
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parent / "env" / "stack.env"
OFFLINE = ".env.offline"


def write(folder: Path) -> list[str]:
    """Make FOLDER's .env and .secrets complete. Returns a line for each thing done, without any secret."""
    done = []
    env_file = folder / ".env"
    text = env_file.read_text() if env_file.exists() else TEMPLATE.read_text()
    wanted = dict(re.findall(r"^(\w+_FILE)=(.*)$", TEMPLATE.read_text(), re.MULTILINE))
    if (folder / OFFLINE).exists():
        offline = dict(re.findall(r"^(\w+)=(.*)$", (folder / OFFLINE).read_text(), re.MULTILINE))
        before, text = text, _set(text, offline)
        if text != before:
            done.append(f"base images from {OFFLINE}: {', '.join(offline.values())}")
    present = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    text = _set(text, {name: path for name, path in wanted.items() if not present.get(name)})
    for name, path in wanted.items():
        file = folder / (present.get(name) or path)
        if not file.exists():
            _write_secret(file)
            done.append(f"a random secret in {file.relative_to(folder) if file.is_relative_to(folder) else file}")
    if not env_file.exists() or env_file.read_text() != text:
        done.append(".env" if env_file.exists() else ".env, from infra/env/stack.env")
        _replace(env_file, text, 0o600)
    env_file.chmod(0o600)
    return done


def _set(text: str, values: dict[str, str]) -> str:
    """Give variables a value in an env file's text: where they stand, commented out or not, else at its end."""
    for name, value in values.items():
        line = f"{name}={value}"
        literally = line.replace("\\", r"\\")  # re reads backslashes in a replacement
        text, count = re.subn(rf"^#?{name}=.*$", literally, text, count=1, flags=re.MULTILINE)
        if not count:
            text = f"{text.rstrip()}\n{line}\n"
    return text


def _write_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.name == ".secrets":
        path.parent.chmod(0o700)
    _replace(path, secrets.token_urlsafe(32), 0o444)


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
    except OSError as error:
        print(f"make env: {error.filename} cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    for line in done or ["nothing: .env and its secrets are complete"]:
        print(f"Wrote {line}" if done else f"Wrote {line}.")
    print("Next: docker compose up -d --wait")


if __name__ == "__main__":
    main()

"""Lay out this machine's pip configuration for images: etc/pip.conf, and what it names, below a folder.

python3 take_over_pip.py FOLDER

What lies in `find-links` folders goes to FOLDER/wheels, which builds mount at /wheels; the constraint file becomes
/etc/pip-constraints.txt, the certificate Debian's bundle. Package indexes on this machine's disk (file://) are left
out: too large for an image.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

TAKEN = ("no-index", "index-url", "extra-index-url", "trusted-host", "timeout", "find-links", "constraint", "cert")


def main(folder: Path) -> None:
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, str] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2].removeprefix("default-")  # `:env:.name` comes first, `global.name` after it
        if name in TAKEN:
            found.setdefault(name, str(ast.literal_eval(value)))  # printed as Python's repr
    settings = {name: value for name, value in found.items() if name not in ("find-links", "constraint", "cert")}
    for name in ("index-url", "extra-index-url"):
        remote = [url for url in settings.get(name, "").split() if not url.startswith("file:")]
        settings.pop(name, None)
        if any(urlsplit(url).password for url in remote):
            print(
                f"make offline-images: pip's {name} holds a password, which the images would show. Take it out.",
                file=sys.stderr,
            )
            sys.exit(2)
        if remote:
            settings[name] = " ".join(remote)
    (folder / "wheels").mkdir()
    if "trusted-host" in settings:
        settings["trusted-host"] = " ".join(settings["trusted-host"].split())
    wheels = [Path(path) for path in found.get("find-links", "").split() if Path(path).is_dir()]
    for path in wheels:
        shutil.copytree(path, folder / "wheels", dirs_exist_ok=True)
    if wheels:
        settings["find-links"] = "/wheels"
    if (constraint := Path(found.get("constraint", ""))).is_file():
        shutil.copy(constraint, folder / "etc" / "pip-constraints.txt")
        settings["constraint"] = "/etc/pip-constraints.txt"
    settings["cert"] = "/etc/ssl/certs/ca-certificates.crt"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (folder / "etc" / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

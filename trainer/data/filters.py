"""Which files are left out before they are read or parsed: vendored, generated, minified, not code.

After GitHub Linguist (lib/linguist/vendor.yml, generated.rb) and the filters of The Stack (BigCode).
"""

import re
from pathlib import PurePosixPath

# Folders that hold no code of the project's own.
VENDORED_FOLDERS = {
    *("node_modules", "bower_components", "jspm_packages", "vendor", "vendored", "_vendor", "third_party"),
    *("third-party", "thirdparty", "Godeps", "Pods", "site-packages", "dist-packages", "venv", "env", "virtualenv"),
    *("__pycache__", "build", "dist", "target"),
}
GENERATED_NAMES = re.compile(
    r"_pb2(_grpc)?\.pyi?$|\.pb\.go$|\.pb\.gw\.go$|_generated\.|\.generated\.|\.gen\.(go|ts|js|rs)$|^zz_generated"
    r"|^bindata\.go$|_string\.go$|[.-]min\.[cm]?js$|\.bundle\.js$|\.d\.[cm]?ts$|^parsetab\.py$|_ui\.py$|_rc\.py$"
)
# In a comment near the top.
GENERATED_NOTE = re.compile(
    r"@generated\b|code generated .*do not edit"
    r"|(do not|don't) (edit|modify).*generat|generat.*(do not|don't) (edit|modify)"
    r"|(auto-?|automatically |machine[- ])generated (by|from|with|file|code)"
    r"|this (file|code) (is|was|has been) generated|^\W*generated (by|from|with)\b",
    re.IGNORECASE,
)
NOTE_LINES = 12
MAX_BYTES = 1_000_000
MAX_LINE, MAX_MEAN_LINE = 1000, 100  # characters; longer ones are data or minified code


def by_name(path: str) -> str | None:
    """Why a file of code is left out by its path inside its source, or None."""
    *folders, name = PurePosixPath(path).parts
    if any(folder.startswith(".") for folder in folders) or name.startswith("."):
        return "hidden"
    if any(folder in VENDORED_FOLDERS for folder in folders):
        return "vendored"
    return "generated" if GENERATED_NAMES.search(name) else None


# By the conventions of pytest and unittest, Go, Jest and Mocha, JUnit, NUnit and xUnit, RSpec, PHPUnit, googletest.
# Not `testing`: that is what libraries call what they offer to those who test.
TEST_FOLDERS = re.compile(
    r"(.*[._-])?(unit|integration|functional|android)?tests?|(.*[._-])?specs?|__(tests?|mocks)__|e2e", re.IGNORECASE
)
TEST_NAMES = re.compile(
    r"(test_.*|.*_tests?|tests?|conftest)\.pyi?|.*_(test|spec)\.(go|rs|rb|dart|exs?|c|cc|cpp|cxx|lua)|tests?\.rs"
    r"|test_.*\.(c|cc|cpp|cxx|rb|lua)|.+[._-](test|tests|spec|e2e|cy)\.[cm]?[jt]sx?|(test|tests|spec)\.[cm]?[jt]sx?"
    r"|(.*[a-z0-9_])?(Test|Tests|TestCase|Spec|IT)\.(java|kt|kts|scala|groovy|cs|fs|vb|php|swift)|Test[A-Z].*\.(java|kt)"
)


def is_test(path: str) -> bool:
    """Whether a file of code is a test, by its path inside its source and what testing tools expect."""
    *folders, name = PurePosixPath(path).parts
    return any(map(TEST_FOLDERS.fullmatch, folders)) or TEST_NAMES.fullmatch(name) is not None


def by_content(text: str) -> str | None:
    """Why a file of code is left out by what is in it, or None."""
    top = text[:4000].split("\n", NOTE_LINES)[:NOTE_LINES]
    if any(
        line.lstrip().startswith(("#", "//", "/*", "*", '"""', "'''")) and GENERATED_NOTE.search(line) for line in top
    ):
        return "generated"
    lines = text.split("\n")
    if len(text) > MAX_MEAN_LINE * len(lines) or max(map(len, lines)) > MAX_LINE:
        return "minified or data"
    return None


TOO_LARGE = f"more than {MAX_BYTES // 1_000_000} MB"


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half a surrogate, which JSON and terminals may hold, cannot."""
    return text.encode(errors="replace").decode() == text


def decode(content: bytes) -> str | None:
    """The file's text with one kind of line end, or None where it is no text."""
    if b"\0" in content:
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")

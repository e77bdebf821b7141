"""The code of a Jupyter notebook: its cells as one text."""

import json
import re

SUFFIX = ".ipynb"
# What IPython takes and Python does not: `%magic`, `!shell`, `?name`, `name?`, and `x = !shell`.
MAGIC = re.compile(r"\s*(%%?\w|!|\?|[\w.]+\?\??\s*$|[\w., ]+=\s*(!|%\w))")
# Cells that are Python still.
PYTHON_CELLS = ("%%time", "%%timeit", "%%capture", "%%prun", "%%memit")


def code_of(text: str) -> str | None:
    """Each code cell as a block, with a blank line between; None where it is no notebook, or not in Python."""
    try:
        notebook = json.loads(text)
        metadata = notebook.get("metadata", {})
        names = (metadata.get("kernelspec", {}).get("language"), metadata.get("language_info", {}).get("name"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    if str(next(filter(None, names), "")).lower() != "python":
        return None
    blocks = [_without_magic(source) for source in sources]
    return "\n".join(f"{block}\n" for block in blocks if block)


def _without_magic(source: str) -> str:
    """A cell's Python; nothing where its first line hands it to another program."""
    if source.startswith("%%") and source.split(maxsplit=1)[0] not in PYTHON_CELLS:
        return ""
    kept, goes_on = [], False
    for line in source.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        magic = MAGIC.match(line)
        if not goes_on and magic is None:
            kept.append(line)
        elif not goes_on and line[:1].isspace():
            kept.append(f"{line[: len(line) - len(line.lstrip())]}pass")  # it may be all that its block has
        goes_on = (goes_on or magic is not None) and line.endswith("\\")
    return "\n".join(kept).strip("\n")

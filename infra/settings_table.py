"""`make docs`: the table of the trainer's settings in docs/training.md, from the dataclasses that define them."""

from pathlib import Path

from trainer.config import Config, walk

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
BEGIN, END = "<!-- settings: written by `make docs` -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """All settings in Markdown: name, default, what it does."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for key, value, option in walk(Config()):
        default = "none" if value is None else str(value).lower() if isinstance(value, bool) else value
        expected = f" *{option['expected']}*" if option["expected"] else ""
        text = f"{option['help']}{expected}".replace("|", "\\|")
        rows.append(f"| `{key}` | `{default}` | {text} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with the table as it has to be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))

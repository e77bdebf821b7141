"""`make docs`: the tables of settings and metrics in docs/, from what defines them."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from contract.metrics import DERIVED, METRICS, PASS_AT
from contract.trials import Limits
from promoter.policy import Floor, Guard, Policy, Primary, Safety, Significance
from promoter.trials.policy import Budget, Margins, Shadow, Step, TrialPolicy
from services.loop.config import Budget as loop_budget
from services.loop.config import Data, Loop, Training, Triggers
from serving.settings import ServingSettings
from trainer.config import Config
from trainer.options import walk

LOOP_SECTIONS: dict[str, type[BaseModel]] = {"data": Data, "triggers": Triggers, "training": Training}
DOCS = Path(__file__).parents[1] / "docs"
TRIAL_SECTIONS: dict[str, type[BaseModel]] = {
    "shadow": Shadow,
    "steps": Step,
    "margins": Margins,
    "budget": Budget,
    "limits": Limits,
}
BEGIN, END = "<!-- written by `make docs` -->\n", "<!-- end of the table -->\n"


def table() -> str:
    """All settings of the trainer in Markdown: name, default, what it does."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for key, value, option in walk(Config()):
        expected = f" *{option['expected']}*" if option["expected"] else ""
        text = f"{option['help']}{expected}".replace("|", "\\|")
        rows.append(f"| `{key}` | `{_default(value)}` | {text} |")
    return "\n".join(rows) + "\n"


def policy_table() -> str:
    """All keys of a policy in Markdown: name, default, what it does."""
    sections: dict[str, type[BaseModel]] = {
        "primary": Primary,
        "guards[]": Guard,
        "floors[]": Floor,
        "significance": Significance,
        "safety": Safety,
    }
    rows = ["| key | default | |", "|---|---|---|"]
    for name, section in sections.items():
        rows.append(f"| **`{name}`** | | {' '.join(str(section.__doc__).split())} |")
        rows += [
            f"| `{name}.{key}` | {'*required*' if field.is_required() else f'`{_default(field.default)}`'} | "
            f"{field.description} |"
            for key, field in section.model_fields.items()
        ]
    approval = Policy.model_fields["approval"]
    rows.append(f"| **`approval`** | `{approval.default}` | {approval.description} |")
    return "\n".join(rows) + "\n"


def trial_table() -> str:
    """All keys of a trial's policy in Markdown: name, default, what it does."""
    rows = ["| key | default | |", "|---|---|---|"]
    for name, field in TrialPolicy.model_fields.items():
        section = TRIAL_SECTIONS.get(name)
        if section is None:
            rows.append(f"| `{name}` | `{_default(field.default)}` | {field.description} |")
            continue
        rows.append(f"| **`{name}`** | | {' '.join(str(section.__doc__).split())} |")
        place = f"{name}[]" if name == "steps" else name
        rows += [
            f"| `{place}.{key}` | {'*required*' if one.is_required() else f'`{_default(one.default)}`'} | "
            f"{one.description} |"
            for key, one in section.model_fields.items()
        ]
    return "\n".join(rows) + "\n"


def loop_table() -> str:
    """All keys of loop.yaml in Markdown: name, default, what it does."""
    rows = ["| key | default | |", "|---|---|---|"]
    for name, field in Loop.model_fields.items():
        section = LOOP_SECTIONS.get(name)
        if section is None:
            default = "*required*" if field.is_required() else f"`{_default(field.default)}`"
            rows.append(f"| `{name}` | {default} | {field.description} |")
            continue
        rows.append(f"| **`{name}`** | | {' '.join(str(section.__doc__).split())} |")
        for key, one in section.model_fields.items():
            if key == "budget":
                rows += [
                    f"| `{name}.budget.{inner}` | `{_default(limit.default)}` | {limit.description} |"
                    for inner, limit in loop_budget.model_fields.items()
                ]
                continue
            default = "*required*" if one.is_required() else f"`{_default(one.default)}`"
            rows.append(f"| `{name}.{key}` | {default} | {one.description} |")
    return "\n".join(rows) + "\n"


def serving_table() -> str:
    """All environment variables of serving in Markdown: name, default, what it does."""
    rows = ["| variable | default | |", "|---|---|---|"]
    rows += [
        f"| `{name.upper()}` | `{_default(field.default)}` | {field.description} |"
        for name, field in ServingSettings.model_fields.items()
        if field.description
    ]
    return "\n".join(rows) + "\n"


def metrics_table() -> str:
    """All metrics of the registry in Markdown: name, which way is better, what it is, from which columns."""
    rows = ["| metric | better | | from |", "|---|---|---|---|"]
    for name, item in METRICS.items():
        label = f"{name}K" if name == PASS_AT else name
        columns = ", ".join(f"`{column}`" for column in item.columns)
        rows.append(f"| `{label}` | {item.direction.partition('_')[0]} | {item.help} | {columns} |")
    rows += [
        f"| `{name}` | {direction.partition('_')[0]} | {help} | no value for each example |"
        for name, (direction, help) in DERIVED.items()
    ]
    return "\n".join(rows) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "training.md": table,
    "promotion.md": policy_table,
    "trials.md": trial_table,
    "loop.md": loop_table,
    "serving.md": serving_table,
    "evaluation.md": metrics_table,
}


def written(page: str, rows: str) -> str:
    """The page with the table as it has to be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{rows}\n{END}{after}"


def _default(value: object) -> object:
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else value


if __name__ == "__main__":
    for name, rows in TABLES.items():
        page = DOCS / name
        page.write_text(written(page.read_text(), rows()))

"""Every block of README and docs is run by a test, or listed here with the reason why none can run it as it stands."""

import json

import pytest

from infra import reference_tables
from promoter import policy
from promoter.trials import policy as trial_policy
from tests.integration.test_docs import ON_THIS_MACHINE, README
from tests.stack.test_docs import IN_CONTAINERS
from tests.support import docs

AWS = "needs an account on AWS; tests/stack/production runs its like against stand-ins"
AWS_TERRAFORM = "infra/aws/README.md: "
NOT_RUN = {
    "README.md: Two commands": "the second would start itself; .ci/run runs both",
    "infra/offline/README.md: Where no image can be pulled": "makes the engine under these tests; .ci/run runs it",
    "docs/models.md: Base models": "wants a model; tests/integration/test_models.py brings some",
    "docs/models.md: Use elsewhere": "wants a version in production; tests/integration/test_models.py exports one",
    "docs/trials.md: Trials: users decide": "takes hours; tests/integration/test_whole_trials.py runs its commands",
    "docs/loop.md: The loop: train by itself, within bounds, and always through the gate": "runs for ever; "
    "tests/integration/test_loop.py has rounds",
    "docs/loop.md: The loop: train by itself, within bounds, and always through the gate (2)": "runs for ever; "
    "tests/stack/test_platform.py has a round",
    "docs/loop.md: What users keep": "tests/integration/test_events.py says all of it",
    "docs/loop.md: Runbook": "wants a loop that has had rounds; tests/integration/test_loop.py says all of it",
    **dict.fromkeys(
        (
            "docs/drift.md: Drift: production moves away from what the model was trained on",
            "docs/drift.md: What has moved",
            "docs/drift.md: What has moved (2)",
        ),
        "wants a version in production and a repository that moves; tests/integration/test_drift.py has both",
    ),
    "docs/training.md: Several machines": "needs two; tests/stack/test_training.py trains in two containers",
    **dict.fromkeys(
        (
            "docs/production.md: Set it up",
            "docs/production.md: The database",
            "docs/production.md: From a local stack",
            "infra/aws/README.md: Make it",
            "infra/aws/README.md: Make it (2)",
            "infra/aws/README.md: Rotate a secret",
            "infra/aws/README.md: The database's certificate authority",
        ),
        AWS,
    ),
    "infra/aws/README.md: Check it": "needs Terraform with its provider; tests/integration/test_terraform.py runs it",
}


def test_every_block_is_run_or_there_is_a_reason_why_not() -> None:
    listed = [README, *(name for names in ON_THIS_MACHINE.values() for name in names), *IN_CONTAINERS, *NOT_RUN]
    assert sorted(listed) == sorted(docs.all_blocks("bash"))


@pytest.mark.parametrize("name", docs.all_blocks("json"))
def test_json_is_an_object_a_line(name: str) -> None:
    for line in docs.all_blocks("json")[name].text.splitlines():
        assert isinstance(json.loads(line), dict)


def test_the_policy_that_the_docs_show_loads(tmp_path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(docs.all_blocks("yaml")["docs/promotion.md: Policies"].text)
    assert policy.load(str(path)).approval == "manual"


def test_the_trials_policy_that_the_docs_show_is_the_default(tmp_path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(docs.all_blocks("yaml")["docs/trials.md: The policy"].text)
    assert trial_policy.load(str(path)) == trial_policy.load("default") == trial_policy.TrialPolicy()


PAGE = """# Title

```bash
# first
make one   # what it does
curl http://127.0.0.1:5000/ -d '{"a": "# none"}' \\
     -H "x: $(cat y)"
```

## Next

    make two#3   # in a terminal of its own

```bash
make four
```
"""


def test_blocks_and_commands_are_found_as_a_reader_sees_them() -> None:
    first, second, third = docs.blocks("a.md", PAGE)
    assert (first.name, first.line) == ("a.md: Title", 4)
    assert (second.name, second.line) == ("a.md: Next", 12)
    assert third.name == "a.md: Next (2)"
    one, curl = first.commands
    assert (one.text, one.comment, one.runs_on) == ("make one", "what it does", False)
    assert curl.text == """curl http://127.0.0.1:5000/ -d '{"a": "# none"}' -H "x: $(cat y)\""""
    assert [(command.text, command.runs_on) for command in second.commands] == [("make two#3", True)]
    assert docs.fill_in(curl.text, {"127.0.0.1:5000": "127.0.0.1:7"}).startswith("curl http://127.0.0.1:7/")


@pytest.mark.parametrize("page", reference_tables.TABLES)
def test_the_reference_tables_are_current(page: str) -> None:
    text = (reference_tables.DOCS / page).read_text()
    assert reference_tables.written(text, reference_tables.TABLES[page]()) == text, "run `make docs`"

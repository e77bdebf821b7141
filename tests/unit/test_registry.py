"""Versions that nobody's trainer made, and the choice among versions."""

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from promoter.gate import Policy, decide
from promoter.registry import PRODUCTION, evidence, incumbent_of, open_candidates
from promoter.report import versions_table


def version(number: int, aliases: tuple[str, ...] = (), **tags: str) -> ModelVersion:
    made = ModelVersion("m", str(number), creation_timestamp=0, aliases=list(aliases))
    made._tags = tags
    return made


def test_version_without_a_run_is_listed_and_refused(tmp_path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    by_hand = version(1)
    assert versions_table(client, [by_hand], ("eval/nll_per_token",)).to_dict("records")[0]["version"] == 1
    decision = decide(Policy("nll", "lower_is_better", 0.01), evidence(client, by_hand), None)
    assert not decision.passed
    assert "has no metric nll" in decision.why


def test_incumbent_is_production_else_the_base_it_was_tuned_from() -> None:
    base, other = version(1, role="base", base_model="a"), version(2, role="base", base_model="b")
    candidate = version(4, role="candidate", base_model="a")
    assert incumbent_of([candidate, other, base], candidate) is base
    served = version(3, (PRODUCTION,), role="candidate", base_model="b")
    assert incumbent_of([candidate, served, other, base], candidate) is served
    assert incumbent_of([served, other, base], served) is None
    assert incumbent_of([base], base) is None


def test_only_open_versions_may_be_promoted_by_themselves() -> None:
    versions = [
        version(5, role="candidate"),
        version(4, role="candidate", stage="Staging"),
        version(3, (PRODUCTION,), role="candidate", stage="Production"),
        version(2, role="candidate", stage="Archived"),
        version(1, role="base"),
    ]
    assert [item.version for item in open_candidates(versions)] == ["5", "4"]

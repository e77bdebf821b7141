"""Policies: what is refused, by name; and what the shipped ones say."""

import pytest

from contract.errors import InputError
from contract.metrics import CURSORS
from promoter.policy import POLICIES, load

PRIMARY = "primary: {metric: eval/nll_per_token, direction: lower_is_better}"


def test_shipped_policies_load_and_differ_in_the_last_word() -> None:
    assert {path.stem for path in POLICIES.glob("*.yaml")} == {"default", "approval"}
    default, approval = load("default"), load("approval")
    assert (default.approval, approval.approval) == ("none", "manual")
    assert default == approval.model_copy(update={"approval": "none"})
    at_cursors = (f"eval/fim/{cursor}/nll_per_token" for cursor in CURSORS)
    others = ("eval/syntax_ok", "eval/edit_similarity")
    assert default.metrics == ("eval/nll_per_token", *others, *at_cursors, "eval/fim/stops")


def test_a_policy_of_one_metric_has_sane_defaults(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(PRIMARY)
    assert load(str(path)).significance.alpha == 0.05
    assert load(str(path)).safety.manifest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("primary: [", "is not YAML"),
        ("- a\n- b", "the whole file"),
        ("", "the whole file"),
        ("guards: []", "primary: Field required"),
        (PRIMARY + "\nguard: []", "guard is []: no such key"),
        (PRIMARY + "\nsafety: {pickle: true}", "safety.pickle is True: no such key"),
        ("primary: {metric: eval/nll_per_token, direction: up}", "primary.direction is 'up'"),
        ("primary: {metric: loss, direction: lower_is_better}", "expected a metric with a value for each example"),
        ("primary: {metric: eval/perplexity, direction: lower_is_better}", "one of nll_per_token"),
        (PRIMARY + "\nsignificance: {alpha: 0.7}", "significance.alpha is 0.7"),
        (PRIMARY + "\nsignificance: {alpha: .nan}", "significance.alpha is nan"),
        (PRIMARY + "\nsignificance: {min_pairs: 1}", "significance.min_pairs is 1"),
        (PRIMARY + "\nfloors: [{metric: eval/passed}]", "expected min, max or both"),
        (PRIMARY + "\nguards: [{metric: eval/passed, direction: higher_is_better, max_regression: -1}]", "is -1"),
        (
            PRIMARY + "\nguards: [{metric: eval/edit_similarity, max_regression: 5}]",
            "max_regression is 5, expected less",
        ),
        (PRIMARY + "\nguards: [{metric: eval/passed, confidence: 1}]", "confidence is 1"),
        (PRIMARY + "\nfloors: [{metric: eval/edit_similarity, min: 17}]", "min is 17, expected from 0 to 1"),
        (PRIMARY + "\nfloors: [{metric: eval/nll_per_token, max: -1}]", "max is -1, expected at least 0"),
        (PRIMARY + "\nfloors: [{metric: eval/passed, min: 0.9, max: 0.1}]", "between which nothing lies"),
        (PRIMARY + "\nsignificance: {min_groups: 1}", "significance.min_groups is 1"),
        (PRIMARY + "\napproval: maybe", "approval is 'maybe'"),
        (PRIMARY.replace("lower_is", "higher_is"), "expected lower_is_better for eval/nll_per_token"),
    ],
)
def test_a_bad_policy_is_refused_by_name(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_a_direction_follows_from_the_metric(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("primary: {metric: eval/passed}\nguards: [{metric: eval/nll_per_token, max_regression: 3}]\n")
    policy = load(str(path))
    assert policy.primary.definition.direction == "higher_is_better"
    assert policy.guards[0].definition.direction == "lower_is_better"


def test_a_missing_policy_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match=r"No policy 'nope'.*approval, default"):
        load("nope")

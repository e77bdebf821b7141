"""What the gate asks besides the figures: is the version in order, and are the figures its own?

Pure functions of the evidence, as the gate itself.
"""

from collections.abc import Callable

from contract.names import EVALUATION_TABLE, HELD_OUT_TWINS
from promoter.decision import Evidence, Finding, Reason, Stage
from promoter.policy import Policy


def safety(policy: Policy, candidate: Evidence, incumbent: Evidence | None, stage: Stage) -> list[Reason]:
    """Whether the version is in order: its signature, its files, its base model, its validation."""
    wanted, version = policy.safety, candidate.version
    seen = candidate.files is not None
    checks: list[tuple[bool, str, Callable[[], Finding]]] = [
        (wanted.signature, "signature", lambda: _signature(candidate, incumbent)),
        (wanted.manifest and seen, "files as at training", lambda: _looked_at("manifest", candidate)),
        (wanted.no_pickle and seen, "no pickled code", lambda: _looked_at("no_pickle", candidate)),
        (wanted.base_model_revision, "base model recorded", lambda: _base_model(candidate)),
    ]
    reasons = [Reason("safety", name, *_as_pair(look())) for asked, name, look in checks if asked]
    needed = wanted.validation == "always" or (wanted.validation == "production" and stage == "Production")
    tried = candidate.validation or "not tried yet"
    detail = f"{tried} (version {version})"
    if needed and candidate.validation is None:
        detail = f"version {version} was not validated: `promoter validate --version {version}`, where torch is"
    passed = candidate.validation == "passed" if needed else candidate.validation != "failed"
    reasons.append(Reason("safety", "validation", passed, detail))
    if wanted.evidence == "always" or (wanted.evidence == "production" and stage == "Production"):
        reasons += [_vouched("candidate", candidate, version)]
        reasons += [_vouched("incumbent", incumbent, version)] if incumbent is not None else []
    return reasons


def bound(who: str, evidence: Evidence) -> list[Reason]:
    """Whether the figures are still those that were measured, and of these files."""
    version, reasons = evidence.version, []
    if not evidence.finished:
        detail = f"run {evidence.run_id} of version {version} has not finished: its figures may still change"
        reasons.append(Reason("evidence", f"{who}'s run has finished", False, detail))
    expected = [("trainer's tag", EVALUATION_TABLE, evidence.sealed)]
    expected += [("record of its promotion", path, sha256) for path, sha256 in evidence.recorded.items()]
    for whose, path, wanted in expected:
        found = evidence.sha256.get(path)
        if wanted is not None and found is not None:
            detail = f"{path} of version {version} has the sha256 {found[:12]}…, as the {whose} says"
            if found != wanted:
                detail = (
                    f"{path} of version {version} was changed: its sha256 is {found[:12]}…, and the {whose} says "
                    f"{wanted[:12]}…"
                )
            reasons.append(Reason("evidence", f"{who}'s table as by the {whose}", found == wanted, detail))
    if evidence.judged_manifest is not None and evidence.manifest is not None:
        same = evidence.judged_manifest == evidence.manifest
        detail = f"run {evidence.run_id} has judged the files with the manifest {evidence.judged_manifest[:12]}…"
        if not same:
            detail += f", and version {version} has others ({evidence.manifest[:12]}…)"
        reasons.append(Reason("evidence", f"{who}'s own files were judged", same, detail))
    return reasons


def apart(candidate: Evidence) -> Reason:
    """Whether the candidate was judged by what it has not seen."""
    digest, seen = candidate.dataset_digest, candidate.train_digests
    known = digest is None or digest not in seen
    detail = "the held-out data are none of those that it was trained on"
    if not known:
        detail = (
            f"version {candidate.version} was trained on the very data that it was judged by (digest {digest}): judge "
            "it on others (data.eval_source, `trainer evaluate`)"
        )
    elif not seen:
        detail = "on what it was trained is not recorded: by an earlier release, or not at all"
    elif (twins := candidate.metrics.get(HELD_OUT_TWINS)) is not None:
        detail += f"; {twins:.1%} of the examples have a near twin among those"
    return Reason("evidence", "held-out data apart from training data", known, detail)


def _vouched(who: str, evidence: Evidence, candidate: str) -> Reason:
    """Whether somebody but the one who wrote the figures stands for them."""
    recorded = bool(evidence.sha256) and evidence.sha256.keys() <= evidence.recorded.keys()
    passed = evidence.recomputed or (recorded and who == "incumbent")
    if evidence.recomputed:
        detail = f"`promoter validate` came to the same figures for a sample of version {evidence.version}'s examples"
    elif passed:
        detail = f"version {evidence.version} was promoted by these figures"
    else:
        detail = (
            f"nobody has recomputed the figures of version {evidence.version} (run {evidence.run_id or '?'}): "
            f"`promoter validate --version {candidate}`, where torch is, does so for both versions"
        )
    return Reason("safety", f"{who}'s figures vouched for", passed, detail)


def _as_pair(finding: Finding) -> tuple[bool, str]:
    return finding.passed, finding.detail


def _looked_at(name: str, candidate: Evidence) -> Finding:
    return (candidate.files or {}).get(name) or Finding(
        False, f"version {candidate.version}: nobody has looked at its files"
    )


def _base_model(candidate: Evidence) -> Finding:
    base = candidate.base_model or ""
    known = base.startswith("sha256:") or all(base.partition("@")[::2])
    hint = "expected the tag base_model with name@revision or sha256:digest, as the trainer sets it"
    return Finding(known, base if known else f"version {candidate.version} names no revision ('{base}'): {hint}")


def _signature(candidate: Evidence, incumbent: Evidence | None) -> Finding:
    ours, theirs = candidate.signature, incumbent.signature if incumbent is not None else None
    if ours is None:
        return Finding(False, f"version {candidate.version} has no signature: serving could not check its requests")
    if theirs is None or incumbent is None:
        return Finding(True, "there is one, and none to be compatible with")
    for part in ("inputs", "outputs"):
        if ours.get(part) != theirs.get(part):
            return Finding(
                False,
                f"{part} of version {candidate.version} are {ours.get(part)}, of version {incumbent.version} "
                f"{theirs.get(part)}: callers of the one would break",
            )
    taken = ours.get("params") or {}
    missing = [
        f"{name} ({kind})" for name, kind in sorted((theirs.get("params") or {}).items()) if taken.get(name) != kind
    ]
    if missing:
        return Finding(False, f"version {candidate.version} does not take {', '.join(missing)}, which callers may send")
    return Finding(True, f"inputs, outputs and parameters of version {incumbent.version}")

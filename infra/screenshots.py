"""Look at the demo's pages in a headless browser: check what they show, and keep the pictures.

python -m infra.screenshots FOLDER   # after `make demo`; needs Debian's chromium, or CHROMIUM=/path
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
from mlflow import MlflowClient
from playwright.sync_api import Page, sync_playwright

from contract.names import DEFAULT_EXPERIMENT, PRODUCTION, pyfunc_model
from infra import gate_demo

TIMEOUT_MS = 30_000
EXPERIMENT = DEFAULT_EXPERIMENT
TYPED = """\
class Pool:
    \"\"\"Connections that are open.\"\"\"

    def __init__(self, loop):
        self._loop = loop
        self._transports = set()

    async def close(self):
        \"\"\"Close all of them, and wait until they are.\"\"\"
        for transport in self._transports:
            """


def look(page: Page, url: str, expected: list[str], picture: Path, search: str = "") -> None:
    """Open a page, wait until it shows every expected text, and take a picture."""
    page.goto(url)
    if search:
        page.get_by_placeholder("Search metric charts").fill(search)
        page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="visible", timeout=TIMEOUT_MS)
    for text in expected:
        page.get_by_text(text, exact=True).first.wait_for(state="visible", timeout=TIMEOUT_MS)
    page.screenshot(path=picture, animations="disabled")
    click.echo(f"{picture}: shows {', '.join(expected)}")


def follow_to_report(page: Page, url: str, picture: Path, expected: tuple[str, ...]) -> None:
    """From a version's page in the registry to the report of the last decision on it."""
    page.goto(url)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Report").first.click()
    tab = opened.value
    for text in expected:
        tab.frame_locator("iframe").get_by_text(text).first.wait_for(state="visible", timeout=TIMEOUT_MS)
    tab.screenshot(path=picture, animations="disabled")
    tab.close()
    click.echo(f"{picture}: shows {', '.join(expected)}")


def look_at_table(page: Page, url: str, picture: Path) -> None:
    """The evaluation's table in MLflow, with its first example opened."""
    page.goto("about:blank")  # else MLflow keeps the artifact that it shows
    page.goto(url)
    table = page.frame_locator("iframe")
    table.get_by_label("with a completion").check(timeout=TIMEOUT_MS)
    table.locator("#rows tr").first.click(timeout=TIMEOUT_MS)
    table.get_by_text("Reference", exact=True).first.wait_for(state="visible", timeout=TIMEOUT_MS)
    page.screenshot(path=picture, animations="disabled")
    click.echo(f"{picture}: shows the table, and one of its examples")


def try_in_browser(page: Page, picture: Path) -> None:
    """`trainer try --page`: code, and how the version in production and its base model go on."""
    command = [sys.executable, "-u", "-m", "trainer", "try", "--page"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            opened = next(filter(None, (re.match(r"Open (\S+)", line) for line in server.stdout)), None)
            if opened is None:
                raise click.ClickException(f"`trainer try --page` has ended with {server.wait()} and no page")
            page.goto(opened[1])
            page.locator("#code").fill(TYPED)
            page.locator("#go").click()
            page.locator("#answers section").nth(1).wait_for(state="visible", timeout=4 * TIMEOUT_MS)
            page.screenshot(path=picture, animations="disabled")
            click.echo(f"{picture}: shows two completions")
        finally:
            server.terminate()


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Check runs, curves, artifacts, registered models and the gate's report in the UI, and two pages of our own.

    Pictures go to FOLDER.
    """
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        click.echo("No browser found. Install Debian's chromium, or set CHROMIUM to one.", err=True)
        sys.exit(2)
    url = os.environ.get("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        click.echo(f"No experiment {EXPERIMENT} at {url}. Run `make demo` first.", err=True)
        sys.exit(2)
    version = client.get_model_version_by_alias(pyfunc_model(EXPERIMENT), PRODUCTION)
    run = client.get_run(str(version.run_id))
    run_url = f"{url}/#/experiments/{experiment.experiment_id}/runs/{version.run_id}"
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
            ],
        )
        context = browser.new_context(viewport={"width": 1280, "height": 860})
        page = context.new_page()
        # The assistant's panel would open by itself and cover a quarter of the page.
        context.add_init_script(
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
            "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
        )
        runs_url = f"{url}/#/experiments/{experiment.experiment_id}/runs"
        look(page, runs_url, [str(run.info.run_name)], folder / "mlflow-runs.png")
        curves = ["loss", "grad_norm"]
        look(page, f"{run_url}/model-metrics", curves, folder / "mlflow-metrics.png", search="train/")
        plot_url = f"{run_url}/artifacts/plots/base_against_candidate.png"
        look(page, plot_url, ["base_against_candidate.png", "eval", "model_card.md"], folder / "mlflow-artifacts.png")
        look_at_table(page, f"{run_url}/artifacts/eval/examples.html", folder / "evaluation-table.png")
        try_in_browser(page, folder / "trainer-try.png")
        serving = f"http://127.0.0.1:{os.environ.get('SERVING_PORT') or 8000}"
        questions = ["What serves", f"Version {version.version}", "What was refused, and why", "Health"]
        look(page, serving, questions, folder / "serving-page.png")
        model = client.get_registered_model(pyfunc_model(EXPERIMENT))
        aliases = [f"@ {alias}" for alias in model.aliases]  # `previous` too, once there was one
        models_url = f"{url}/#/models/{EXPERIMENT}_model"
        look(page, models_url, aliases, folder / "mlflow-models.png")
        passed = ("Is it better?", "Did nothing else get worse?", "Each file's change", "Got better most")
        follow_to_report(page, f"{models_url}/versions/{version.version}", folder / "gate-report.png", passed)
        if any(model.name == gate_demo.MODEL for model in client.search_registered_models()):  # after `make gate-demo`
            demo_url = f"{url}/#/models/{gate_demo.MODEL}/versions"
            for number, candidate in enumerate(gate_demo.CANDIDATES, 2):
                verdict = "passed the gate" if candidate.exit_code == 0 else "refused"
                picture = folder / f"gate-demo-{number}.png"
                follow_to_report(page, f"{demo_url}/{number}", picture, (f"version {number} → Staging: {verdict}",))
        browser.close()


if __name__ == "__main__":
    main()

"""infra/aws with the real AWS provider, where Terraform and the provider are on this machine: format, types, plans."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infra.environment import PRODUCTION, values

pytestmark = pytest.mark.integration

# Where providers lie on machines that reach no registry; Terraform looks into some of these by itself.
MIRRORS = [
    Path("/opt/tf-plugins"),
    Path("/usr/local/share/terraform/plugins"),
    Path.home() / ".terraform.d" / "plugins",
]


@pytest.fixture(scope="module")
def terraform(root, tmp_path_factory):
    """Run a Terraform command on a copy of infra/aws that is initialised, with the real provider."""
    mirror = next(
        (folder for folder in MIRRORS if list(folder.glob("*/hashicorp/aws/*/*/terraform-provider-aws*"))), None
    )
    if not shutil.which("terraform") or mirror is None:
        pytest.skip(f"no terraform here, or no AWS provider in {', '.join(map(str, MIRRORS))}")
    folder = tmp_path_factory.mktemp("terraform") / "aws"
    ignored = shutil.ignore_patterns(".terraform*")
    shutil.copytree(root / "infra" / "aws", folder, ignore=ignored)
    # No file of the user's, and no account.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["terraform", *arguments], cwd=folder, env=env | {"TF_IN_AUTOMATION": "1"}, capture_output=True, text=True
        )

    done = run("init", "-input=false", "-no-color", f"-plugin-dir={mirror}")
    assert done.returncode == 0, done.stderr
    return run


def test_it_is_formatted_and_valid(terraform) -> None:
    formatted = terraform("fmt", "-check", "-recursive", "-diff", "-no-color")
    assert formatted.returncode == 0, formatted.stdout
    valid = terraform("validate", "-no-color")
    assert valid.returncode == 0, valid.stderr
    assert "Success! The configuration is valid." in valid.stdout


def test_its_own_tests_pass(terraform) -> None:
    done = terraform("test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Success! [1-9]\d* passed, 0 failed", done.stdout)


def test_its_output_is_what_production_has_no_default_for(root: Path) -> None:
    (text,) = re.findall(r"env = <<-ENV\n(.*?)\n\s+ENV\n", (root / "infra/aws/outputs.tf").read_text(), re.DOTALL)
    given = set(re.findall(r"^\s+(\w+)=", text, re.MULTILINE))
    template = values(PRODUCTION.read_text())
    files = {
        name for name in template if name.endswith("_FILE") and name != "COMPOSE_FILE"
    }  # those are `make env-prod`'s
    assert set(template) - files <= given
    known = re.findall(r"^#?(\w+)=", PRODUCTION.read_text(), re.MULTILINE)
    assert given <= set(known)
    demanded = set(re.findall(r"\$\{(\w+):\?", (root / "docker-compose.prod.yml").read_text()))
    assert demanded - files <= given


def test_the_database_authorities_are_those_of_rds_and_in_date(root: Path) -> None:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509

    found = x509.load_pem_x509_certificates((root / "infra/aws/rds-ca.pem").read_bytes())
    assert len(found) > 80
    for certificate in found:
        assert "OU=Amazon RDS" in certificate.subject.rfc4514_string()
        assert certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=180)

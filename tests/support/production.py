"""The running stack in production, and what its users do with it."""

import datetime
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra import accounts
from tests.support.stack import Platform

EXPERIMENT = "code_model_fine_tuning"
MODEL = f"{EXPERIMENT}_model"
TRAINING = (
    *("model.name=bundled:tiny-random", "trainer.max_length=600", "trainer.lr=1e-2", "data.max_train_examples=40"),
    *("data.max_eval_examples=24", "data.eval_fraction=0.4", "eval.max_new_tokens=8"),
    "eval.max_generated=0",  # random weights write no code, which the shipped policy wants
)
ONE = "experiments/search?max_results=1"


def certificate(folder: Path, name: str, hosts: tuple[str, ...] = (), issuer: Any = None) -> Any:
    """Write NAME.crt and NAME.key: an authority's own, or one for `hosts` by `issuer`. Returns both."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), False)
    made = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return made, key


@dataclass(frozen=True)
class Production(Platform):
    """The running stack in production, and what its users do with it."""

    home: Path
    authority: Path  # the edge's root certificate

    def request(self, method: str, path: str, auth: tuple[str, str] | None = None, **options: Any) -> requests.Response:
        return requests.request(
            method, f"{self.tracking_url}{path}", auth=auth, verify=str(self.authority), timeout=60, **options
        )

    def account(self, user: str) -> tuple[str, str]:
        """Name and password of a user of the tracking server."""
        if user == "admin":
            return user, (self.home / ".secrets" / "mlflow_admin_password").read_text()
        return accounts.credentials(self.home / ".secrets" / f"{user}_credentials")

    def api(self, user: str, method: str, path: str, **options: Any) -> requests.Response:
        """Ask MLflow's REST API as one of its users, over TLS."""
        return self.request(method, f"/api/2.0/mlflow/{path}", self.account(user), **options)

    def sql(self, query: str) -> str:
        """What the database answers to its superuser."""
        psql = ("psql", "--username=postgres", "--dbname=ratchet", "--tuples-only", "--no-align", "--command", query)
        return self.docker_compose("exec", "--no-TTY", "rds", *psql).strip()


def ask(production: Production, headers: dict[str, str] | None = None) -> requests.Response:
    body = {"prompt": "def add(a, b):\n", "max_tokens": 8}
    sent = production.headers if headers is None else headers
    return production.request("POST", "/v1/completions", json=body, headers=sent)


@contextmanager
def load(work: Callable[[], Any], clients: int = 4) -> Iterator[list[Any]]:
    """Call `work` over and over in threads; yields what the calls returned, or raised."""
    answers: list[Any] = []
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            try:
                answers.append(work())
            except Exception as error:
                answers.append(error)

    threads = [threading.Thread(target=go_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()

"""What a large artifact costs the tracking server: memory and temporary disk, by the stock way and by production's.

python -m tests.bench.large_artifact [--gb 2]

Stock: MLflow's proxied upload and download, in which the whole file goes through the server. Production's: parts go
between the client and S3 by URLs that the server signs. Each way has a server of its own. S3 is rclone's, in a
container and without keys, since with them it takes no signed URLs (`make offline-images` makes it).
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import click
import psutil
import requests

from contract.files import free_port
from services.tracking.readiness import is_ready, wait_until

KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
# As docker-compose.prod.yml sets them.
DIRECT = {
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "true",
    "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "33554432",
    "MLFLOW_MULTIPART_DOWNLOAD_MINIMUM_FILE_SIZE": "33554432",
}
STOCK = {"MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false", "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"}
IMAGE = "ratchet-offline/s3:rclone"
CLIENT = """
import pathlib, sys, time, mlflow
file, back = map(pathlib.Path, sys.argv[1:])
began = time.monotonic()
with mlflow.start_run() as run: mlflow.log_artifact(str(file))
print(time.monotonic() - began)
began = time.monotonic()
found = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=file.name, dst_path=back)
print(time.monotonic() - began)
assert pathlib.Path(found).stat().st_size == file.stat().st_size
"""


@contextmanager
def process(*command: str, env: dict[str, str]) -> Iterator[psutil.Process]:
    started = psutil.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        for member in [*started.children(recursive=True), started]:
            member.kill()
        started.wait()


class Peaks:
    """The most memory (bytes above what it had at rest) and temporary disk (bytes) that the server took meanwhile."""

    def __init__(self, server: psutil.Process, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.rest, self.memory, self.disk = self._resident(), 0, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peaks":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _resident(self) -> int:
        return sum(member.memory_info().rss for member in [self.server, *self.server.children(recursive=True)])

    def _watch(self) -> None:
        while not self.stop.wait(0.05):
            self.memory = max(self.memory, self._resident() - self.rest)
            usage = 0
            for path in self.folder.rglob("*"):
                try:
                    usage += path.stat().st_size
                except OSError:  # gone meanwhile
                    continue
            self.disk = max(self.disk, usage)


@contextmanager
def s3() -> Iterator[str]:
    """rclone's S3 server; yields its URL. Its files go with its container."""
    port, name = free_port(), f"ratchet-bench-{os.getpid()}"
    run = ("docker", "run", "--detach", "--rm", "--name", name, "--publish", f"127.0.0.1:{port}:9000")
    serve = ("--entrypoint", "rclone", IMAGE, "serve", "s3", "--addr", ":9000", "/data")
    subprocess.run([*run, *serve], check=True, capture_output=True)
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_until(lambda: answers(url), 30, lambda: True), "rclone does not answer"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1",
                              aws_access_key_id="bench", aws_secret_access_key="bench")  # fmt: skip
        client.create_bucket(Bucket="bench")
        yield url
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, capture_output=True)


def measure(name: str, way: dict[str, str], file: Path) -> Peaks:
    """Upload the file and download it again, by a server of its own; prints what that took."""
    with s3() as endpoint, tempfile.TemporaryDirectory(dir=file.parent) as folder:
        home, port = Path(folder), free_port()
        for made in ("temporary", "back"):
            (home / made).mkdir()
        uri = f"http://127.0.0.1:{port}"
        settings = KEYS | {
            "RATCHET_HOME": str(home / "ratchet"),
            "TRACKING_PORT": str(port),
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://bench/artifacts",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
            "TMPDIR": str(home / "temporary"),
        }
        with process(sys.executable, "-m", "services.tracking", env=settings) as server:
            assert wait_until(lambda: is_ready(uri), 60, server.is_running), "the tracking server does not answer"
            env = os.environ | way | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
            with Peaks(server, home / "temporary") as peaks:
                command = [sys.executable, "-c", CLIENT, str(file), str(home / "back")]
                done = subprocess.run(command, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    up, down = (float(line) for line in done.stdout.split()[-2:])
    print(
        f"{name:7} {file.stat().st_size / 1e9:.1f} GB: {up:5.1f} s up, {down:5.1f} s down; tracking took "
        f"{peaks.memory / 1e6:7.1f} MB of memory and {peaks.disk / 1e6:7.1f} MB of temporary disk at most"
    )
    return peaks


@click.command()
@click.option("--gb", default=2.0, show_default=True, help="Size of the artifact (10^9 bytes).")
def main(gb: float) -> None:
    """Compare the stock way with production's."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.bin"
        with file.open("wb") as out:
            block = os.urandom(1 << 20)
            for _ in range(int(gb * 1e9) >> 20):
                out.write(block)
        stock, direct = measure("stock", STOCK, file), measure("direct", DIRECT, file)
    print(
        f"ratio, stock to direct: memory {stock.memory / max(direct.memory, 1):.0f}; "
        f"temporary disk {stock.disk / 1e6:.1f} MB to {direct.disk / 1e6:.1f} MB"
    )


def answers(url: str) -> bool:
    try:
        return bool(requests.get(url, timeout=5))
    except requests.RequestException:
        return False


if __name__ == "__main__":
    main()

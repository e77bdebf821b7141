"""Training in containers: several on one network, killed ones that go on, checkpoints on the volume and in S3."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow.entities import Run

from contract.files import free_port
from tests.support.doses import EPOCHS
from tests.support.stack import Platform

pytestmark = pytest.mark.stack

# float32: what comes from several containers is added up in another order, and nothing else differs.
TOLERANCE = 1e-5
TINY = (
    *("model.name=bundled:tiny-random", "model.dtype=float32", "trainer.max_length=600", "trainer.lr=1e-2"),
    *("data.max_train_examples=48", "data.max_eval_examples=4", "eval.max_new_tokens=8"),
)
HOSTS = ("-f", "infra/compose/hosts.yml", "run", "--rm", "--no-TTY")


def losses(platform: Platform, experiment: str) -> tuple[Run, list[tuple[int, float]]]:
    """The one run that fine-tuned, and the loss of each of its steps in order."""
    found = platform.client.get_experiment_by_name(experiment)
    assert found is not None
    [run] = platform.client.search_runs([found.experiment_id], "tags.role = 'candidate'")
    history = platform.client.get_metric_history(run.info.run_id, "train/loss")
    return run, sorted((item.step, item.value) for item in history)


@pytest.fixture(scope="module")
def alone(platform: Platform) -> list[tuple[int, float]]:
    """Losses of one process, in the trainer that is on the host's network."""
    platform.run("trainer", "--version")  # makes the network `internet`: two commands at once would each make one
    output = platform.docker_compose(*HOSTS, "trainer", *TINY, "tracking.experiment_name=alone")
    assert "alone_model version 2" in output
    return losses(platform, "alone")[1]


def command(name: str, rank: int, first: str, *more: str) -> tuple[str, ...]:
    """The second of two containers on the stack's network differs from the first by its number alone."""
    together = (f"distributed.machine_rank={rank}", "distributed.machines=2", f"distributed.rendezvous={first}:29500")
    return ("run", "--rm", "--no-TTY", "--name", name, "trainer", *TINY, "trainer.batch_size=4", *together, *more)


def test_two_containers_have_the_losses_of_one_process(platform: Platform, environ, alone) -> None:
    names = [f"{environ['COMPOSE_PROJECT_NAME']}-machine-{rank}" for rank in (0, 1)]
    experiment = "tracking.experiment_name=two_containers"
    with ThreadPoolExecutor() as pool:
        outputs = list(
            pool.map(lambda rank: platform.docker_compose(*command(names[rank], rank, names[0], experiment)), (0, 1))
        )
    run, found = losses(platform, "two_containers")
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in alone], rel=TOLERANCE)
    assert run.info.status == "FINISHED"
    assert "two_containers_model version 2" in outputs[0]
    assert "version" not in outputs[1]  # machine 1 trains, and no more


def test_one_container_dies_and_the_other_says_so(platform: Platform, environ) -> None:
    names = [f"{environ['COMPOSE_PROJECT_NAME']}-dying-{rank}" for rank in (0, 1)]
    more = ("tracking.experiment_name=one_dies", "trainer.max_steps=100000", "distributed.timeout_s=60")
    with ThreadPoolExecutor() as pool:
        first, second = (
            pool.submit(platform.docker_compose, *command(names[rank], rank, names[0], *more), expected=code)
            for rank, code in ((0, 1), (1, 137))
        )
        platform.wait_for(lambda: "  step " in logs(names[0]), "training is under way")
        subprocess.run(["docker", "kill", names[1]], check=True, capture_output=True)
        output = first.result()
        second.result()
    assert "Error: Process 0 on machine 0" in output
    assert "The same command goes on from the last checkpoint" in output
    assert losses(platform, "one_dies")[0].info.status == "FAILED"


def logs(container: str) -> str:
    return subprocess.run(["docker", "logs", container], capture_output=True, text=True).stdout


def test_a_killed_container_goes_on_from_the_volume(platform: Platform, environ, alone) -> None:
    name = f"{environ['COMPOSE_PROJECT_NAME']}-killed"
    more = ("tracking.experiment_name=killed", "checkpoint.save_steps=2", f"trainer.epochs={EPOCHS[0]}")
    job = ("run", "--rm", "--no-TTY", "--name", name, "trainer", *TINY, *more)
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(platform.docker_compose, *job, expected=137)
        platform.wait_for(lambda: "  step " in logs(name), "training is under way")
        subprocess.run(["docker", "kill", name], check=True, capture_output=True)
        killed.result()
    output = platform.docker_compose(*job)
    assert "marked KILLED" in output
    assert "Going on from step" in output
    run, found = losses(platform, "killed")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in found] == list(range(1, 6 * EPOCHS[0] + 1))  # 48 examples by 8


def test_a_container_elsewhere_goes_on_from_s3(platform: Platform, environ) -> None:
    name = f"{environ['COMPOSE_PROJECT_NAME']}-moved"
    # A folder that goes with its container, as a machine that is lost.
    more = (
        "checkpoint.folder=/tmp/lost",
        "checkpoint.to_tracking=true",
        "checkpoint.save_steps=2",
        f"trainer.epochs={EPOCHS[1]}",
    )
    job = ("run", "--rm", "--no-TTY", "--name", name, "trainer", *TINY, *more, "tracking.experiment_name=moved")
    in_bucket = (
        "from services.bucket.__main__ import connect; from services.bucket.settings import BucketSettings\n"
        "pages = connect(BucketSettings()).get_paginator('list_objects_v2').paginate(Bucket='ratchet')\n"
        "print(*[item['Key'] for page in pages for item in page.get('Contents', [])], sep='\\n')"
    )

    def stored() -> bool:
        keys = platform.python("tracking", in_bucket)
        return "/checkpoints/checkpoint-" in keys and "/complete.json" in keys

    with ThreadPoolExecutor() as pool:
        stopped = pool.submit(platform.docker_compose, *job, expected=143)
        platform.wait_for(stored, "a checkpoint is in the bucket")
        subprocess.run(["docker", "stop", "--time", "60", name], check=True, capture_output=True)
        assert "Saving a checkpoint" in stopped.result()
    output = platform.docker_compose(*job)
    assert "Fetching checkpoint" in output
    assert "Going on from step" in output
    run, found = losses(platform, "moved")
    assert [step for step, _ in found] == list(range(1, 6 * EPOCHS[1] + 1))
    assert run.info.status == "FINISHED"
    assert "/checkpoints/" not in platform.python("tracking", in_bucket)


def test_the_file_for_several_hosts_takes_the_trainer_off_the_stacks_networks(platform: Platform) -> None:
    config = json.loads(
        platform.docker_compose("-f", "infra/compose/hosts.yml", "--profile", "jobs", "config", "--format", "json")
    )
    trainer = config["services"]["trainer"]
    assert trainer["network_mode"] == "host"
    assert not trainer.get("networks")
    assert trainer["environment"]["MLFLOW_TRACKING_URI"] == platform.tracking_url
    assert config["services"]["tracking"]["networks"].keys() == {"data", "platform"}


def test_a_rendezvous_that_nobody_keeps_is_an_error(platform: Platform) -> None:
    alone_there = (
        "distributed.machines=2",
        f"distributed.rendezvous=127.0.0.1:{free_port()}",
        "distributed.timeout_s=10",
    )
    output = platform.run("trainer", *TINY, *alone_there, "tracking.experiment_name=nobody", expected=1)
    assert "Error: Process 0 on machine 0" in output

"""`make env`: random secrets that only the owner reaches, and nothing lost."""

import hashlib
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infra import environment
from serving.access import parse


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def secrets_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / ".secrets").iterdir()}


def test_secrets_are_random_long_and_out_of_the_env_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        environment.write(tmp_path / name)
    one, two = secrets_of(tmp_path / "one"), secrets_of(tmp_path / "two")
    assert set(one) == {"postgres_password", "minio_root_password", "serving_token", "serving_tokens"}
    assert len({*one.values(), *two.values()}) == 8
    env = tmp_path / "one" / ".env"
    for value in one.values():
        assert len(value) >= 40
        assert value not in env.read_text()
    assert mode(env) == 0o600
    # The folder keeps others out; the files in it are mounted as they are, for users of the containers' own.
    assert mode(tmp_path / "one" / ".secrets") == 0o700
    modes = {path.name: mode(path) for path in (tmp_path / "one" / ".secrets").iterdir()}
    assert modes.pop("serving_token") == 0o400  # for you alone: the container gets its hash
    assert modes.pop("serving_tokens") == 0o644  # which `serving.access` writes to
    assert set(modes.values()) == {0o444}
    assert one["serving_token"] not in one["serving_tokens"]
    assert parse(one["serving_tokens"]) == {"owner": hashlib.sha256(one["serving_token"].encode()).hexdigest()}


def test_a_second_run_keeps_secrets_and_settings(tmp_path: Path) -> None:
    environment.write(tmp_path)
    env = tmp_path / ".env"
    env.write_text(env.read_text().replace("#TRACKING_PORT=5000", "TRACKING_PORT=5050") + "MINE=1\n")
    before, text = secrets_of(tmp_path), env.read_text()
    assert environment.write(tmp_path) == []
    assert secrets_of(tmp_path) == before
    assert env.read_text() == text


def test_what_is_missing_is_made_again(tmp_path: Path) -> None:
    environment.write(tmp_path)
    kept = secrets_of(tmp_path)["postgres_password"]
    (tmp_path / ".secrets" / "minio_root_password").unlink()
    (tmp_path / ".env").write_text("TRACKING_PORT=5050\n")
    environment.write(tmp_path)
    assert secrets_of(tmp_path)["postgres_password"] == kept
    assert secrets_of(tmp_path)["minio_root_password"]
    assert "POSTGRES_PASSWORD_FILE=.secrets/postgres_password" in (tmp_path / ".env").read_text()
    assert "TRACKING_PORT=5050" in (tmp_path / ".env").read_text()


def test_offline_images_are_entered(tmp_path: Path) -> None:
    environment.write(tmp_path)
    (tmp_path / ".env.offline").write_text("# why\nPOSTGRES_IMAGE=ratchet-offline/postgres:17\nNEW_IMAGE=x\n")
    environment.write(tmp_path)
    lines = (tmp_path / ".env").read_text().splitlines()
    assert "POSTGRES_IMAGE=ratchet-offline/postgres:17" in lines
    assert "NEW_IMAGE=x" in lines
    assert not [line for line in lines if line.startswith("#POSTGRES_IMAGE")]


def test_images_that_you_chose_stay(tmp_path: Path) -> None:
    environment.write(tmp_path)
    env = tmp_path / ".env"
    env.write_text(env.read_text() + "POSTGRES_IMAGE=registry/postgres:17\n")
    (tmp_path / ".env.offline").write_text("POSTGRES_IMAGE=ratchet-offline/postgres:17\n")
    environment.write(tmp_path)
    assert environment.values(env.read_text())["POSTGRES_IMAGE"] == "registry/postgres:17"


def test_values_are_read_as_compose_reads_them() -> None:
    text = "A=\"x y\" # why\nB=plain # why\n#C=1\nexport D='q'\nE=\nF=a#b\n"
    assert environment.values(text) == {"A": "x y", "B": "plain", "D": "q", "E": "", "F": "a#b"}


def test_a_secret_file_of_your_own_is_neither_made_nor_moved(tmp_path: Path) -> None:
    environment.write(tmp_path)
    env = tmp_path / ".env"
    env.write_text(env.read_text().replace(".secrets/postgres_password", '"mine/password" # kept elsewhere'))
    with pytest.raises(environment.InputError, match=r"POSTGRES_PASSWORD_FILE is 'mine/password'"):
        environment.write(tmp_path)
    assert not (tmp_path / "mine").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "password").write_text("secret")
    (tmp_path / ".secrets").chmod(0o755)
    assert environment.write(tmp_path) == []
    assert (tmp_path / "mine" / "password").read_text() == "secret"
    assert mode(tmp_path / ".secrets") == 0o700


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = subprocess.run(
        [sys.executable, environment.__file__, str(tmp_path / "file")], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "cannot be written" in result.stderr


def test_every_variable_of_the_compose_file_is_explained_with_its_default(root: Path) -> None:
    compose = re.sub(r"(^|\s)#.*", "", (root / "docker-compose.yml").read_text())
    used = dict(re.findall(r"\$\{(\w+):[-?+]([^}]*)\}", compose))
    explained = dict(re.findall(r"^#?(\w+)=(.*)$", environment.TEMPLATE.read_text(), re.MULTILINE))
    used.pop("USER")  # the shell's own
    assert set(used) == set(explained)
    for name, default in explained.items():
        if not name.endswith("_FILE") and name != "SOURCE_DIR":
            assert used[name] == default, name

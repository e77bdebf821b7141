"""`make env`: random secrets that only the owner reaches, and nothing lost."""

import hashlib
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from contract.tokens import Owner, parse
from infra import environment


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def secrets_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / ".secrets").iterdir()}


def test_secrets_are_random_long_and_out_of_the_env_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        environment.write(tmp_path / name)
    one, two = secrets_of(tmp_path / "one"), secrets_of(tmp_path / "two")
    names = {"postgres_password", "minio_root_password", "serving_token", "serving_tokens", "monitoring_token"}
    assert set(one) == names
    assert len({*one.values(), *two.values()}) == 10
    env = tmp_path / "one" / ".env"
    for value in one.values():
        assert len(value) >= 40
        assert value not in env.read_text()
    assert mode(env) == 0o600
    # The folder keeps others out; the files in it are mounted as they are, for users of the containers' own.
    assert mode(tmp_path / "one" / ".secrets") == 0o700
    modes = {path.name: mode(path) for path in (tmp_path / "one" / ".secrets").iterdir()}
    assert modes.pop("serving_token") == 0o400  # for you alone: the container gets its hash
    assert modes.pop("serving_tokens") == 0o644  # which `serving.gateway.tokens` writes to
    assert set(modes.values()) == {0o444}
    assert one["serving_token"] not in one["serving_tokens"]
    hashed = {name: hashlib.sha256(one[token].encode()).hexdigest() for name, token in
              (("owner", "serving_token"), ("monitoring", "monitoring_token"))}  # fmt: skip
    assert {owner.name: digest for digest, owner in parse(one["serving_tokens"]).items()} == hashed
    assert [owner.name for owner in parse(one["serving_tokens"]).values() if owner.admin] == ["owner"]


def test_prometheus_gets_a_token_beside_those_that_are_there(tmp_path: Path) -> None:
    """As in a stack of an earlier release, whose people have tokens."""
    environment.write(tmp_path)
    tokens = tmp_path / ".secrets" / "serving_tokens"
    (tmp_path / ".secrets" / "monitoring_token").unlink()
    tokens.write_text(tokens.read_text() + f"ada:{'a' * 64}\n")
    inode = tokens.stat().st_ino
    assert "a token for Prometheus" in " ".join(environment.write(tmp_path))
    token = (tmp_path / ".secrets" / "monitoring_token").read_text()
    known = {owner.name: digest for digest, owner in parse(tokens.read_text()).items()}
    assert set(known) == {"owner", "ada", "monitoring"}
    assert known["monitoring"] == hashlib.sha256(token.encode()).hexdigest()
    assert tokens.stat().st_ino == inode  # a container sees the file that it was given


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


def used(*files: Path) -> dict[str, str]:
    """The variables of Compose files, with their defaults (or with what is said where there is none)."""
    found: dict[str, str] = {}
    inside = r"(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*"  # a default may hold variables itself
    for file in files:
        text = re.sub(r"(^|\s)#.*", "", file.read_text())
        found |= {
            name: default or found.get(name, "")
            for name, default in re.findall(rf"\$\{{(\w+)(?::[-?+]({inside}))?\}}", text)
        }
    found.pop("USER", None)  # the shell's own
    return found


def explained(template: Path) -> dict[str, str]:
    return dict(re.findall(r"^#?(\w+)=(.*)$", template.read_text(), re.MULTILINE))


def test_every_variable_of_the_compose_file_is_explained_with_its_default(root: Path) -> None:
    defaults, known = used(root / "docker-compose.yml"), explained(environment.TEMPLATE)
    assert set(defaults) == set(known)
    for name, default in known.items():
        if not name.endswith("_FILE") and name != "SOURCE_DIR":
            assert defaults[name] == default, name


def test_production_explains_what_it_adds_and_says_its_defaults(root: Path) -> None:
    merged = used(root / "docker-compose.yml", root / "docker-compose.prod.yml")
    known = explained(environment.PRODUCTION)
    assert set(merged) <= {*known, *explained(environment.TEMPLATE)}
    assert set(known) - {"COMPOSE_FILE", "RATCHET_NAME"} <= set(merged)  # these are Compose's own, and start.sh's
    commented = dict(re.findall(r"^#(\w+)=(.*)$", environment.PRODUCTION.read_text(), re.MULTILINE))
    for name, default in commented.items():
        assert merged[name] == default, name


def test_production_has_secrets_for_each_part_and_none_for_the_database(tmp_path: Path) -> None:
    environment.write(tmp_path, production=True)
    found = secrets_of(tmp_path)
    assert set(found) == {
        *("mlflow_admin_password", "mlflow_secret_key", "serving_token", "serving_tokens", "postgres_password"),
        *("trainer_credentials", "promoter_credentials", "serving_credentials"),
    }
    assert found["postgres_password"] == ""  # IAM
    assert found["trainer_credentials"].startswith("[mlflow]\nmlflow_tracking_username = trainer\n")
    assert {path.name for path in tmp_path.iterdir()} == {".env", ".secrets"}
    assert environment.write(tmp_path, production=True) == []
    assert secrets_of(tmp_path) == found
    env = tmp_path / ".env"
    env.write_text(env.read_text().replace("docker-compose.prod.yml", "docker-compose.prod.yml:mine.yml"))
    assert environment.write(tmp_path, production=True) == []  # a file more is no secret


def test_a_token_that_is_there_is_kept_and_hashed(tmp_path: Path) -> None:
    (tmp_path / ".secrets").mkdir()
    (tmp_path / ".secrets" / "serving_token").write_text("rt-from-secrets-manager")
    environment.write(tmp_path, production=True)
    hashed = hashlib.sha256(b"rt-from-secrets-manager").hexdigest()
    assert parse(secrets_of(tmp_path)["serving_tokens"]) == {hashed: Owner("owner", admin=True)}


def test_a_database_password_is_the_owners_to_write(tmp_path: Path) -> None:
    text = environment.PRODUCTION.read_text().replace("#DATABASE_AUTH=iam", "DATABASE_AUTH=password")
    (tmp_path / ".env").write_text(text)
    with pytest.raises(environment.InputError, match=r"write the database's password to \.secrets/postgres_password"):
        environment.write(tmp_path, production=True)
    (tmp_path / ".secrets" / "postgres_password").write_text("given")
    environment.write(tmp_path, production=True)
    assert secrets_of(tmp_path)["postgres_password"] == "given"


@pytest.mark.parametrize("production", [False, True])
def test_an_env_file_of_the_other_stack_is_left_alone(tmp_path: Path, production: bool) -> None:
    environment.write(tmp_path, production=production)
    before = (tmp_path / ".env").read_text()
    with pytest.raises(environment.InputError, match="Use another folder for each"):
        environment.write(tmp_path, production=not production)
    assert (tmp_path / ".env").read_text() == before

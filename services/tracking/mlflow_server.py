"""`mlflow server` with our application in the place of MLflow's."""

from typing import Any

from mlflow import cli, server

APPLICATION = "services.tracking.application:create"


def main() -> None:
    """Run `mlflow server`, which has an option for another application, but takes only those of installed packages."""
    build: Any = server._build_uvicorn_command

    def build_ours(options: Any, host: Any, port: Any, workers: Any, app: Any, env_file: Any, factory: bool) -> Any:
        return build(options, host, port, workers, APPLICATION, env_file, is_factory=True)

    vars(server)["_build_uvicorn_command"] = build_ours
    cli.cli(prog_name="mlflow")


if __name__ == "__main__":
    main()

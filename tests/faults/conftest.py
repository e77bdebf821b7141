"""A real PostgreSQL and a tracking server on it, and promoters as processes that can be killed."""

from collections.abc import Iterator

import mlflow
import pytest
from testcontainers.community.postgres import PostgresContainer

from tests.support.images import base_image
from tests.support.tracking import Stack, make_stack, server


@pytest.fixture(scope="session")
def on_postgres(engine, tmp_path_factory) -> Iterator[Stack]:
    """A tracking server with two workers, as in the Compose stack, on a PostgreSQL of its own."""
    with PostgresContainer(image=base_image("POSTGRES_IMAGE"), username="ratchet", password="ratchet") as container:
        stack = make_stack(tmp_path_factory.mktemp("faults"))
        uri = container.get_connection_url(driver="psycopg2")
        stack = Stack(stack.url, stack.home, stack.env | {"MLFLOW_BACKEND_STORE_URI": uri, "TRACKING_WORKERS": "2"})
        with server(stack):
            mlflow.set_tracking_uri(stack.url)
            yield stack

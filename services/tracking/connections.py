"""How many connections to the database the tracking server may hold, all its workers together.

A worker has one SQLAlchemy pool each for runs, for the registry and, with TRACKING_AUTH, for users. Left alone each may
grow to 15; four workers then hold 180, more than a small RDS instance gives to everybody.
"""

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from contract.errors import InputError
from services.tracking.settings import TrackingSettings

# In a pool. A request may hold two connections at a time: where as many requests as the pool has connections hold one
# each, they wait for each other, and after 30 s MLflow answers 400, which no client repeats.
AT_LEAST = 10
ELSEWHERE = 5  # the first process, the migration, a person with psql


def pool(settings: TrackingSettings) -> dict[str, str]:
    """MLflow's variables by which all pools together stay within TRACKING_CONNECTIONS; none where that is 0.

    Raises InputError where there are too few for each pool to have AT_LEAST.
    """
    if not settings.tracking_connections:
        return {}
    pools = settings.tracking_workers * (3 if settings.tracking_auth else 2)
    each = settings.tracking_connections // pools
    if each < AT_LEAST:
        raise InputError(
            f"TRACKING_CONNECTIONS is {settings.tracking_connections}: expected at least {AT_LEAST * pools}, "
            f"{AT_LEAST} for each of the {pools} pools of TRACKING_WORKERS={settings.tracking_workers}. Raise it, or "
            "lower the workers."
        )
    # MLflow takes an overflow of 0 for none given, which is SQLAlchemy's 10. So one of each pool's is overflow.
    return {
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(each - 1),
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "1",
    }


def check_limit(uri: str, wanted: int) -> None:
    """Raise InputError where PostgreSQL gives an ordinary user fewer connections than all pools may hold."""
    if not wanted or not make_url(uri).get_backend_name().startswith("postgresql"):
        return
    engine = create_engine(uri)
    with engine.connect() as connection:
        kept = connection.scalar(
            text(
                "SELECT sum(setting::int) FROM pg_settings"
                " WHERE name IN ('superuser_reserved_connections', 'reserved_connections')"
            )
        )
        given = int(connection.scalar(text("SHOW max_connections")) or 0) - int(kept or 0)
    engine.dispose()
    if wanted + ELSEWHERE > given:
        raise InputError(
            f"TRACKING_CONNECTIONS is {wanted}: expected {given - ELSEWHERE} at most, since this database gives "
            f"{given} (max_connections less what it keeps back) and {ELSEWHERE} are needed beside the server. "
            "Lower it, or take a larger instance."
        )

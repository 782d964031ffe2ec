"""Brings a tracker's database to the tables that this version needs; it keeps what is in it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DatabaseError

from cahlib.errors import ConfigError, is_full
from cahlib.tracker.database import Database, DatabaseAway


def migrate(database: Database, revision: str = "head") -> None:
    """Upgrade the database; two processes that do so at once wait for each other.

    Raises ConfigError, or DatabaseAway with the driver's words: it may be a name that is wrong.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with database.write() as connection:
            if not database.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7319044)")
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except DatabaseAway as error:
        if is_full(error):
            raise
        said = " ".join(str(getattr(error.__cause__, "orig", error.__cause__)).split()).rstrip(".")
        raise DatabaseAway(f"database: {database.shown} cannot be reached: {said}.") from error
    except DatabaseError as error:
        raise ConfigError(
            f"database: {database.shown} cannot be used as a tracker's ({error.orig})."
        ) from error

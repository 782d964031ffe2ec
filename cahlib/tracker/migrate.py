"""Brings a tracker's database to the tables that this version needs; it keeps what is in it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DatabaseError

from cahlib.core.errors import ConfigError, is_disk_full
from cahlib.ledger.database import Database, DatabaseAway

#: What alembic keeps in a database that is ours.
_MARK = "alembic_version"


def migrate(database: Database, revision: str = "head", *, create: bool = True) -> None:
    """Upgrade the database; two processes that do so at once wait for each other.

    Without ``create``, one must be there. Raise ConfigError if it is not, or is another program's
    or a newer version's; DatabaseAway with the driver's words: it may be a name that is wrong.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    if database.file and not create and not database.file.exists():
        raise ConfigError(_absent(database))
    try:
        with database.write() as connection:
            if not database.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7319044)")
            _check_ours(database, connection, create=create)
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except DatabaseAway as error:
        if is_disk_full(error):
            raise
        said = " ".join(str(getattr(error.__cause__, "orig", error.__cause__)).split()).rstrip(".")
        raise DatabaseAway(f"database: {database.shown} cannot be reached: {said}.") from error
    except CommandError as error:
        raise ConfigError(
            f"database: {database.shown} is from a newer version of cahlib; upgrade this one."
        ) from error
    except DatabaseError as error:
        raise ConfigError(
            f"database: {database.shown} cannot be used as a tracker's ({error.orig})."
        ) from error


def _check_ours(database: Database, connection: Connection, *, create: bool) -> None:
    tables = set(inspect(connection).get_table_names())
    if not (tables or create):
        raise ConfigError(_absent(database))
    if tables and _MARK not in tables:
        raise ConfigError(
            f"database: {database.shown} holds something else ({', '.join(sorted(tables)[:3])}); "
            "give the tracker a database of its own."
        )


def _absent(database: Database) -> str:
    return (
        f"database: {database.shown} holds no tracker; `cah tracker add` with this --database "
        "begins one, or its name is misspelt."
    )

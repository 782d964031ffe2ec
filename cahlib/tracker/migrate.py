"""Migration of a tracker's database to the tables of this version; its content is kept."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DatabaseError

from cahlib.core.errors import ConfigError, is_disk_full
from cahlib.ledger.database import Database, DatabaseUnavailable

#: The table by which a tracker's database is recognized.
_VERSION_TABLE = "alembic_version"


def migrate(database: Database, revision: str = "head", *, create: bool = True) -> None:
    """Upgrade the database; two processes that do so at once wait for each other.

    Without ``create``, one must be there. Raise ConfigError if it is not, or is another program's
    or a newer version's; DatabaseAway with the driver's words: it may be a name that is wrong.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    if database.file and not create and not database.file.exists():
        raise ConfigError(_missing(database))
    try:
        with database.write() as connection:
            if not database.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7319044)")
            _check_tracker(database, connection, create=create)
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except DatabaseUnavailable as error:
        if is_disk_full(error):
            raise
        said = " ".join(str(getattr(error.__cause__, "orig", error.__cause__)).split()).rstrip(".")
        raise DatabaseUnavailable(
            f"database: {database.display_url} cannot be reached: {said}."
        ) from error
    except CommandError as error:
        raise ConfigError(
            f"database: {database.display_url} is from a newer version of cahlib; upgrade cahlib."
        ) from error
    except DatabaseError as error:
        raise ConfigError(
            f"database: {database.display_url} cannot be used by a tracker ({error.orig})."
        ) from error


def _check_tracker(database: Database, connection: Connection, *, create: bool) -> None:
    tables = set(inspect(connection).get_table_names())
    if not (tables or create):
        raise ConfigError(_missing(database))
    if tables and _VERSION_TABLE not in tables:
        raise ConfigError(
            f"database: {database.display_url} has tables of another program "
            f"({', '.join(sorted(tables)[:3])}); give the tracker a database of its own."
        )


def _missing(database: Database) -> str:
    return (
        f"database: {database.display_url} has no tracker; correct the URL, or create one by "
        "running `cah tracker add` with this --database."
    )

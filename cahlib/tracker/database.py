"""The way to a database, SQLite or PostgreSQL; it does not know what is in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from cahlib.errors import ConfigError, RunError


class DatabaseAway(RunError):
    """The database cannot be reached now; nothing was changed, try again later."""


class Database:
    """Transactions on one database; safe for many threads.

    ``url`` is SQLAlchemy's: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.shown = self.engine.url.render_as_string(hide_password=True)
        self._writing = self.engine.execution_options(writes=True)
        # SQLite lets one writer in, and others sleep and poll: a lock of ours is fair and faster.
        self._turn: AbstractContextManager[Any] = (
            threading.Lock() if self.is_sqlite else nullcontext()
        )

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file of SQLite."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that changes something; all of it or nothing."""
        with _reached(), self._turn, self._writing.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with _reached(), self.engine.connect() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """An insert of this dialect, which has ``on_conflict_…``."""
        return (sqlite if self.is_sqlite else postgresql).insert(table)

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, NoConnection) as error:
        raise DatabaseAway("The database cannot be reached; try again in a minute.") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise DatabaseAway("The connection to the database broke off; try again.") from error


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "database: this is no database URL; write sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("database: a tracker needs a file; write sqlite:///FILE.")
        return _sqlite(url)
    if parsed.drivername != "postgresql+psycopg":
        raise ConfigError(
            f"database: {parsed.drivername} is not known; use sqlite or postgresql+psycopg."
        )
    return create_engine(
        parsed,
        pool_size=8,  # more at once only wait for each other's locks
        max_overflow=8,
        pool_timeout=10,
        connect_args={"connect_timeout": 5, "options": "-c statement_timeout=30000"},
    )


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, pool_size=20, max_overflow=40)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    # WAL: readers never wait for the writer. The timeout: another process may be writing.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA synchronous=FULL")  # a shard that is done stays done at a power cut


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a transaction that reads before it writes would fail instead of waiting.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

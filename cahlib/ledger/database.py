"""Transactions on SQLite or PostgreSQL; nothing here knows the tables."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from cahlib.core.errors import ConfigError, RunError, disk_full_error, is_disk_full


class DatabaseUnavailable(RunError):
    """The database cannot be reached now; nothing was changed, and the call may be repeated."""


class Database:
    """Transactions on one database; safe for many threads.

    ``url`` is SQLAlchemy's: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME. Pass a
    local path as a `sqlalchemy.URL`: in a string, ``?`` and ``%`` have a meaning of their own.
    """

    def __init__(self, url: str | URL) -> None:
        self.engine = _engine(url)
        self.display_url = self.engine.url.render_as_string(hide_password=True)
        # for the error of a full disk: a server's URL says nothing of its disk
        self._location = (self.is_sqlite and self.engine.url.database) or "the database"
        self._writing = self.engine.execution_options(writes=True)
        # SQLite admits one writer while others sleep and poll. With more than 12, PostgreSQL's
        # writers only wait for each other's locks; some connections stay free for readers.
        self._writers = _FairSemaphore(1 if self.is_sqlite else 12)
        self._closed = False

    @property
    def is_sqlite(self) -> bool:
        """Return whether this is an SQLite file."""
        return self.engine.dialect.name == "sqlite"

    @property
    def file(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(self.engine.url.database or "") if self.is_sqlite else None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Provide a transaction that writes, committed as a whole or not at all."""
        with (
            self._use(),
            self._writers.acquired(),
            self._writing.begin() as connection,
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Provide a transaction that only reads."""
        with self._use(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """Provide SQLite's own cursor, for a single SELECT: a seventh of the time of `read`."""
        with (
            self._use(),
            closing(self.engine.raw_connection()) as connection,
            closing(connection.cursor()) as cursor,
        ):
            yield cursor

    def close(self) -> None:
        """Close all connections; those in use as soon as they are returned."""
        self._closed = True
        self.engine.pool.dispose()  # the engine's dispose would also replace it

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Translate errors, and close the connection that is returned after `close`."""
        try:
            with _translated_errors(self._location):
                yield
        finally:
            if self._closed:  # looked at after the return: what `close` did not see, this does
                self.engine.pool.dispose()


def insert_into(connection: Connection, table: Table) -> Any:
    """Return an insert of the connection's dialect, which has ``on_conflict_…``."""
    return (sqlite if is_sqlite(connection) else postgresql).insert(table)


def is_sqlite(connection: Connection) -> bool:
    """Return whether a connection is to an SQLite file."""
    return connection.dialect.name == "sqlite"


class _FairSemaphore:
    """A semaphore that serves in the order of arrival.

    SQLAlchemy's pool gives a free connection to a thread that arrives while a waiting one is being
    woken: of 64 busy threads some timed out after 10 s.
    """

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def acquired(self) -> Iterator[None]:
        """Hold a permit, once it is this thread's turn."""
        turn = threading.Event()
        with self._lock:
            self._waiting.append(turn)
            self._wake()
        try:
            turn.wait()
            yield
        finally:
            with self._lock:
                if turn.is_set():
                    self._free += 1
                else:  # interrupted while waiting
                    self._waiting.remove(turn)
                self._wake()

    def _wake(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft().set()


@contextmanager
def _translated_errors(location: str) -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, NoConnection, sqlite3.OperationalError) as error:
        if is_disk_full(error):
            raise DatabaseUnavailable(str(disk_full_error(location))) from error
        raise DatabaseUnavailable(
            "The database cannot be reached; try again in a minute."
        ) from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise DatabaseUnavailable("The connection to the database was lost; try again.") from error


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.port is not None and not 0 < parsed.port < 65536:
            raise ValueError(parsed.port)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "database: this is not a database URL; write sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("database: a tracker needs a file; write sqlite:///FILE.")
        return _sqlite(parsed)
    if parsed.drivername != "postgresql+psycopg":
        raise ConfigError(
            f"database: {parsed.drivername} is not supported; use sqlite or postgresql+psycopg."
        )
    options = {"connect_timeout": 5}
    engine = create_engine(
        parsed, pool_size=16, max_overflow=0, pool_timeout=10, connect_args=options
    )
    event.listen(engine, "connect", _configure_postgresql)
    return engine


def _configure_postgresql(connection: Any, record: object) -> None:
    """Limit the duration of a statement; behind PgBouncer, prepare none.

    In its transaction mode each transaction may get another session, where a statement is not
    prepared and settings of the session would be another client's. The backend process then is not
    the one that answered when the connection was made.
    """
    with ExitStack() as unless_configured:
        unless_configured.callback(connection.close)  # no pool has it yet
        with connection.cursor() as cursor:
            pid = cursor.execute("SELECT pg_backend_pid()").fetchone()[0]
            if pid != connection.info.backend_pid:
                connection.prepare_threshold = None
            else:
                cursor.execute("SET statement_timeout = 30000")
        connection.commit()
        unless_configured.pop_all()


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, pool_size=20, max_overflow=40)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin)
    return engine


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # `_begin` sends BEGIN
    # WAL: readers never wait for the writer. Timeout: another process may be writing.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA synchronous=FULL")  # a finished shard survives a power cut


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a transaction that reads before it writes would fail instead of waiting.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

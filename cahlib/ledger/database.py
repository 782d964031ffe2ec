"""The way to a database, SQLite or PostgreSQL; it does not know what is in it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from cahlib.core.errors import ConfigError, RunError, disk_full_error, is_disk_full


class DatabaseAway(RunError):
    """The database cannot be reached now; nothing was changed, try again later."""


class Database:
    """Transactions on one database; safe for many threads.

    ``url`` is SQLAlchemy's: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME. A path
    of this machine comes as a `sqlalchemy.URL`: in a text, ``?`` and ``%`` mean something else.
    """

    def __init__(self, url: str | URL) -> None:
        self.engine = _engine(url)
        self.shown = self.engine.url.render_as_string(hide_password=True)
        # a file by its path; a server's URL says nothing of its disk
        self._place = (self.is_sqlite and self.engine.url.database) or "the database"
        self._writing = self.engine.execution_options(writes=True)
        # SQLite lets one writer in, and others sleep and poll. PostgreSQL's writers only wait for
        # each other's locks if there are more, and some connections stay free for readers.
        self._turns = _Turns(1 if self.is_sqlite else 12)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file of SQLite."""
        return self.engine.dialect.name == "sqlite"

    @property
    def file(self) -> Path | None:
        """The file of SQLite; None for a server."""
        return Path(self.engine.url.database or "") if self.is_sqlite else None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that changes something; all of it or nothing."""
        with _reached(self._place), self._turns.next(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with _reached(self._place), self.engine.connect() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """An insert of this dialect, which has ``on_conflict_…``."""
        return (sqlite if self.is_sqlite else postgresql).insert(table)

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()


class _Turns:
    """So many at once, first come first served.

    SQLAlchemy's pool gives a free connection to whoever comes by while another is being woken for
    it: of 64 busy threads some came away empty-handed after 10 s.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def next(self) -> Iterator[None]:
        """A place, when it is our turn."""
        turn = threading.Event()
        with self._lock:
            self._waiting.append(turn)
            self._call()
        try:
            turn.wait()
            yield
        finally:
            with self._lock:
                if turn.is_set():
                    self._free += 1
                else:  # interrupted while waiting
                    self._waiting.remove(turn)
                self._call()

    def _call(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft().set()


@contextmanager
def _reached(place: str) -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, NoConnection) as error:
        if is_disk_full(error):
            raise DatabaseAway(str(disk_full_error(place))) from error
        raise DatabaseAway("The database cannot be reached; try again in a minute.") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise DatabaseAway("The connection to the database broke off; try again.") from error


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.port is not None and not 0 < parsed.port < 65536:
            raise ValueError(parsed.port)
    except (ArgumentError, ValueError):  # a port that is none
        raise ConfigError(
            "database: this is no database URL; write sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("database: a tracker needs a file; write sqlite:///FILE.")
        return _sqlite(parsed)
    if parsed.drivername != "postgresql+psycopg":
        raise ConfigError(
            f"database: {parsed.drivername} is not known; use sqlite or postgresql+psycopg."
        )
    options = {"connect_timeout": 5}
    engine = create_engine(
        parsed, pool_size=16, max_overflow=0, pool_timeout=10, connect_args=options
    )
    event.listen(engine, "connect", _settle)
    return engine


def _settle(connection: Any, record: object) -> None:
    """Bound how long a statement takes; behind PgBouncer, prepare none.

    In its transaction mode each transaction may meet another session, in which a statement is not
    prepared, and settings of a session would be another client's. The process that serves us is
    then not the one that answered when we connected.
    """
    with connection.cursor() as cursor:
        pid = cursor.execute("SELECT pg_backend_pid()").fetchone()[0]
        if pid != connection.info.backend_pid:
            connection.prepare_threshold = None
        else:
            cursor.execute("SET statement_timeout = 30000")
    connection.commit()


def _sqlite(url: URL) -> Engine:
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

"""Backup of a running tracker to a file, from one moment, and its restoration to any database."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from sqlalchemy import (
    JSON,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    func,
    inspect,
    select,
    text,
)

from cahlib.core.atomic import new_file
from cahlib.core.errors import ConfigError
from cahlib.ledger.database import Database, is_sqlite
from cahlib.tracker.migrate import migrate
from cahlib.tracker.schema import metadata

#: The format that the first line names.
_FORMAT = "cahlib tracker"
#: Rows per read and write.
_BATCH = 2000


def backup(database: Database, path: Path) -> int:
    """Write a tracker to a file that only its owner can read; return the number of rows.

    Raise RunError if the disk is full.
    """
    with new_file(path, mode=0o600) as raw:
        with gzip.open(raw, "wt", compresslevel=3, encoding="utf-8") as file:
            count = _write(database, file)
    return count


def restore(database: Database, path: Path) -> int:
    """Fill an empty database from a backup of this or an earlier version; return the rows.

    Raise ConfigError if the database is not empty, or the file is not a backup.
    """
    try:
        _check_complete(path)  # before anything is created
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head = json.loads(next(file))
            with database.read() as connection:
                if inspect(connection).get_table_names():
                    raise ConfigError(
                        f"database: {database.display_url} is not empty; restore into an empty one."
                    )
            migrate(database, head["revision"])
            with database.write() as connection:
                count = _fill(connection, file)
        migrate(database)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except (OSError, EOFError, ValueError, KeyError, StopIteration) as error:
        raise ConfigError(f"{path} is not a complete backup of a tracker.") from error
    return count


def _write(database: Database, file: IO[str]) -> int:
    count = 0
    with _snapshot(database) as connection:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        _line(file, {"form": _FORMAT, "revision": revision})
        for table in metadata.sorted_tables:
            binary = [isinstance(column.type, LargeBinary) for column in table.columns]
            columns = [column.name for column in table.columns]
            _line(file, {"table": table.name, "columns": columns, "binary": binary})
            query = select(table).execution_options(yield_per=_BATCH)
            for row in connection.execute(query):
                _line(file, [v.hex() if isinstance(v, bytes) else v for v in row])
                count += 1
        _line(file, {"rows": count})
    return count


def _snapshot(database: Database) -> Connection:
    """Return a connection whose statements all see one moment, as SQLite's do by default."""
    connection = database.engine.connect()
    if not database.is_sqlite:
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
    return connection


def _line(file: IO[str], value: Any) -> None:
    file.write(json.dumps(value, separators=(",", ":")) + "\n")


def _check_complete(path: Path) -> None:
    """Raise ValueError, or an error of reading, if a file is not a complete backup."""
    count, line = 0, b""
    with gzip.open(path, "rb") as file:
        if json.loads(next(file))["form"] != _FORMAT:
            raise ValueError(path)
        for line in file:
            count += line.startswith(b"[")
    if json.loads(line) != {"rows": count}:
        raise ValueError(path)


def _fill(connection: Connection, file: Iterable[str]) -> int:
    count, tables = 0, MetaData()
    lines = (json.loads(line) for line in file)
    table: Table | None = None
    head: dict[str, Any] = {}
    for rows in _batches(lines):
        if isinstance(rows, dict):
            head = rows
            if "rows" in head:
                break
            table = Table(head["table"], tables, autoload_with=connection)
            for column in table.columns:
                if isinstance(column.type, JSON):
                    column.type.none_as_null = True
            continue
        if table is None:
            raise ValueError("rows without a table")
        values = [
            {
                name: bytes.fromhex(value) if binary and value is not None else value
                for name, binary, value in zip(head["columns"], head["binary"], row, strict=True)
            }
            for row in rows
        ]
        connection.execute(table.insert(), values)
        count += len(values)
    if not is_sqlite(connection):
        _advance_sequences(connection, tables)
    return count


def _batches(lines: Iterator[Any]) -> Iterator[dict[str, Any] | list[list[Any]]]:
    """Yield each table's head by itself, and its rows in batches."""
    waiting: list[list[Any]] = []
    for line in lines:
        if isinstance(line, list):
            waiting.append(line)
        if waiting and (isinstance(line, dict) or len(waiting) == _BATCH):
            yield waiting
            waiting = []
        if isinstance(line, dict):
            yield line
    if waiting:
        yield waiting


def _advance_sequences(connection: Connection, tables: MetaData) -> None:
    """Make PostgreSQL's sequences continue after the restored numbers."""
    for table in tables.tables.values():
        (key, *others) = table.primary_key.columns
        if others or not isinstance(key.type, Integer):
            continue
        sequence = func.pg_get_serial_sequence(table.name, key.name)
        name = connection.execute(select(sequence)).scalar()
        last = connection.execute(select(func.max(key))).scalar()
        if name and last:
            connection.execute(select(func.setval(name, last)))

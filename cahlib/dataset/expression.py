"""Evaluate SQL expressions on tables with DuckDB, safely: an expression may be anybody's.

An expression is a condition as in a WHERE clause: columns, constants, operators, and functions of
one row. It is parsed before it runs, and what is not on the lists below is refused: subqueries,
windows, aggregates, and functions whose result depends on more than their arguments. DuckDB opens
no file, extension or connection here, and its settings are locked. So an expression gives the same
values each time.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import duckdb
import pyarrow as pa

from cahlib.core.errors import ConfigError

#: The settings of DuckDB: it is given tables, and reaches nothing else.
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # names in SQL are not those of Python's variables
    "memory_limit": "1GB",
    "temp_directory": "",  # nothing is spilled
    "lock_configuration": "true",
}

#: The parts of an expression that are allowed, as DuckDB's parser calls them.
_PARTS = {
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT",
    "FUNCTION", "OPERATOR", "TYPE",
}  # fmt: skip

#: What the others are called in a message.
_REFUSED = {
    "SUBQUERY": "a subquery", "WINDOW": "a window function", "STAR": "`*`",
    "LAMBDA": "a lambda function", "LAMBDA_REF": "a lambda function", "PARAMETER": "a parameter",
}  # fmt: skip

#: Macros of DuckDB's own that use nothing but their arguments.
_MACROS = {"if", "nullif", "split_part", "fdiv", "array_to_string"}

#: SQL types of numbers, without their sizes.
_NUMBERS = {
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER",
    "UBIGINT", "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL",
}  # fmt: skip

#: Characters that no expression needs, and that would harm a terminal.
_UNPRINTABLE = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

#: Characters of an expression: people write no longer ones.
_LONGEST = 100_000


class Evaluator:
    """Evaluates expressions on tables that have some or all of ``columns``; thread-safe.

    ``seconds`` limits each evaluation, and may be changed.
    """

    def __init__(self, columns: Mapping[str, pa.DataType], *, seconds: float | None = None) -> None:
        self._columns, self.seconds, self._lock = columns, seconds, threading.Lock()
        self._checked = dict[str, tuple[str, ...]]()  #: columns of expressions that are allowed
        self._known_types = dict[str, str]()
        # of WIDTH and width, Width is the first one
        self._by_lower = {name.lower(): name for name in reversed([*columns])}
        self._duckdb = duckdb.connect(":memory:", config=_SETTINGS)
        kinds = self._duckdb.execute(
            "SELECT DISTINCT function_name, function_type, stability FROM duckdb_functions()"
        ).fetchall()
        self._all = {name for name, *_ in kinds}
        self._aggregates = {name for name, kind, _ in kinds if kind == "aggregate"}
        self._functions = {name for name, *how in kinds if how == ["scalar", "CONSISTENT"]}
        self._functions |= _MACROS - self._aggregates

    def columns_of(self, expression: str, option: str) -> list[str]:
        """Return the columns that an expression names.

        Raise ConfigError, which begins with ``option``, if it may not be evaluated.
        """
        if expression in self._checked:
            return [*self._checked[expression]]
        names = dict[str, None]()
        for part in self._parsed(expression, option):
            kind = part["class"]
            if kind not in _PARTS:
                what = _REFUSED.get(kind, kind.lower().replace("_", " "))
                raise ConfigError(
                    f"{option}: {shortened(expression)} has {what}; give one expression on the "
                    "columns of a pair."
                )
            if kind == "COLUMN_REF":
                names[self._column(part["column_names"], option)] = None
            elif kind == "FUNCTION":
                self._check_function(part, option)
        if len({name.lower() for name in names}) < len(names):
            alike = [
                each for each in names if sum(each.lower() == name.lower() for name in names) > 1
            ]
            raise ConfigError(
                f"{option}: {shortened(expression)} names both {' and '.join(alike)}, which SQL "
                "does not distinguish; use only one of them."
            )
        self._checked[expression] = (*names,)
        return [*names]

    def type_of(self, expression: str, option: str) -> str:
        """Return the SQL type of an expression; raise as `columns_of` does."""
        names = self.columns_of(expression, option) or [*self._columns][:1]
        if expression in self._known_types:
            return self._known_types[expression]
        empty = pa.schema([(name, self._columns[name]) for name in names]).empty_table()
        with self._evaluated(expression, empty, option) as found:
            self._known_types[expression] = str(found.types[0])
            return self._known_types[expression]

    def values(self, expression: str, table: pa.Table, option: str) -> pa.ChunkedArray:
        """Return the value of an expression for each row of a table; raise as `columns_of` does."""
        self.columns_of(expression, option)
        with self._evaluated(expression, table, option) as found:
            return found.to_arrow_table()["value"]

    @contextmanager
    def _evaluated(
        self, expression: str, table: pa.Table, option: str
    ) -> Iterator[duckdb.DuckDBPyRelation]:
        """Give the value of an expression for each row of a table, as a relation."""
        with self._lock, self._errors(option, expression):
            self._duckdb.register("pairs", table)
            try:
                yield self._duckdb.sql(f"SELECT (\n{expression}\n) AS value FROM pairs")
            finally:
                self._duckdb.unregister("pairs")

    def _parsed(self, expression: str, option: str) -> Iterator[Mapping[str, Any]]:
        """Yield the parts of an expression, each with its class."""
        if not expression.strip():
            raise ConfigError(f"{option}: the expression is empty; name a column.")
        if odd := _UNPRINTABLE.search(expression):
            raise ConfigError(
                f"{option}: the expression contains the character {odd[0]!a}; remove it."
            )
        if len(expression) > _LONGEST:
            raise ConfigError(
                f"{option}: the expression has {len(expression):,} characters; at most "
                f"{_LONGEST:,} are allowed."
            )
        sql = f"SELECT (\n{expression}\n) FROM pairs"
        with self._lock, self._errors(option, expression):
            found = self._duckdb.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql])
            parsed = json.loads(found.fetchall()[0][0])
        if parsed["error"]:
            said = " ".join(parsed["error_message"].split()).split(". ")[0]
            said = said.replace('at or near ")"', "at its end").replace(" ) FROM pairs", "")
            raise ConfigError(f"{option}: {shortened(expression)} is not valid SQL: {said}.")
        if len(parsed["statements"]) != 1 or not _is_one(parsed["statements"][0]["node"]):
            raise ConfigError(
                f"{option}: {shortened(expression)} is not one SQL expression; give what stands "
                "in a WHERE."
            )
        yield from _parts(parsed["statements"][0]["node"]["select_list"])

    def _column(self, path: Sequence[str], option: str) -> str:
        name = ".".join(path)
        if name in self._columns:
            return name
        if found := self._by_lower.get(name.lower()):
            return found
        raise ConfigError(f"{option}: there is no column {name}; {self._meant(name.lower())}")

    def _meant(self, name: str) -> str:
        """Return the end of a sentence on an unknown column: those that may have been meant."""
        near = get_close_matches(name, self._by_lower, n=3)
        near += [each for each in self._by_lower if name in each and each not in near][:3]
        if near:
            names = (quote_name(self._by_lower[each]) for each in near)
            return f"did you mean {' or '.join(names)}?"
        return f"there are {', '.join(map(quote_name, self._columns))}."

    def _check_function(self, part: Mapping[str, Any], option: str) -> None:
        name = part["function_name"]
        if name in self._functions and not (part.get("schema") or part.get("catalog")):
            return
        if name in self._aggregates:
            why = "is an aggregate, which has no value for one pair"
        elif name in self._all:
            why = "depends on more than the pair's values"
        else:
            near = get_close_matches(name, self._functions, n=1, cutoff=0.7)
            why = "is not a function" + (f"; did you mean {near[0]}()?" if near else "")
        raise ConfigError(f"{option}: {name}() {why}" + "." * (not why.endswith("?")))

    @contextmanager
    def _errors(self, option: str, expression: str) -> Iterator[None]:
        """Turn DuckDB's errors into ConfigError, and interrupt it when its time is over."""
        timer = threading.Timer(self.seconds, self._duckdb.interrupt) if self.seconds else None
        if timer:
            timer.start()
        try:
            yield
        except duckdb.InterruptException as error:
            if self.seconds is None:
                raise KeyboardInterrupt from error
            raise ConfigError(
                f"{option}: {shortened(expression)} takes more than {self.seconds:g} s; give a "
                "simpler expression."
            ) from error
        except duckdb.OutOfMemoryException as error:
            raise ConfigError(
                f"{option}: {shortened(expression)} takes more than 1 GB of memory; give a "
                "simpler expression."
            ) from error
        except (duckdb.Error, RecursionError) as error:
            raise ConfigError(
                f"{option}: {shortened(expression)} cannot be evaluated: {_said(error)}."
            ) from error
        finally:
            if timer:
                timer.cancel()


def shortened(expression: str) -> str:
    """Return an expression as messages show it: on one line, and not long."""
    text = " ".join(expression.split())
    return f"`{text if len(text) <= 80 else text[:79] + '…'}`"


def quote_name(name: str) -> str:
    """Return a column's name as SQL needs it: in quotes if it is not a plain word."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else '"' + name.replace('"', '""') + '"'


def is_number(kind: str) -> bool:
    """Return whether values of an SQL type are numbers."""
    return kind.rstrip("0123456789(),") in _NUMBERS


def _is_one(node: Mapping[str, Any]) -> bool:
    """Return whether a parsed statement is nothing but `SELECT (expression) FROM pairs`."""
    expected = {"type", "select_list", "from_table", "aggregate_handling"}
    more = [value for name, value in node.items() if name not in expected]
    return (
        node["type"] == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"].get("table_name") == "pairs"
        and not any(value for value in more if value != {"map": []})
    )


def _parts(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all objects with a class in a parsed expression."""
    left = [tree]
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            if "class" in each:
                yield each
            left.extend(reversed([*each.values()]))
        elif isinstance(each, list):
            left.extend(reversed(each))


def _said(error: BaseException) -> str:
    """Return the first line of an error of DuckDB's, without its kind."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).strip().splitlines()[0]
    return re.sub(r"^\w[\w ]* Error: ", "", text).rstrip(".!")

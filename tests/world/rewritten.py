"""The test modules as pytest compiles them, kept before there are processes that load them.

To rewrite their assertions takes 3.7 CPU seconds, and in a fresh clone each of pytest-xdist's
processes would do it at the same time as the others.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

_TESTS = Path(__file__).parent.parent


class _Compiled(Exception):
    """Raised where a module would begin to be executed: pytest has kept its code by then."""


class _Module(types.ModuleType):
    """A module that can be loaded and not executed."""

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        raise _Compiled


def keep() -> None:
    """Compile the test modules that are not kept yet; pytest's import hook is there."""
    if sys.dont_write_bytecode:
        return
    for path in _TESTS.rglob("test_*.py"):
        name = ".".join(path.relative_to(_TESTS.parent).with_suffix("").parts)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader, name
        module = _Module(name)
        module.__spec__ = spec
        try:
            spec.loader.exec_module(module)
        except _Compiled:
            continue
        raise AssertionError(f"{name} was executed")

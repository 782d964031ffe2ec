"""The interface that engines share: jobs by key, submitted and taken back with their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """Runs jobs by key; see `cahlib.engine.local` and `cahlib.engine.remote`."""

    @property
    def slots(self) -> int:
        """Return the number of jobs that can run at the same time."""

    def __len__(self) -> int:
        """Return the number of jobs submitted and not yet returned by `take`."""

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any, limit: float) -> None:
        """Start ``function(*arguments, limit=…, report=…)``, which may take ``limit`` seconds."""

    def take(self, *, timeout: float) -> tuple[str, Any] | None:
        """Return a finished job's key with its result or its exception; None after the timeout."""

    def reports(self) -> list[Any]:
        """Return the last report of each running job."""

"""Kaggle's limits: the length of a session, how many at once, and the account's GPU quota.

They are checked before anything is created, pushed or paid.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from cahlib.core.errors import ConfigError
from cahlib.kaggle.service import GpuQuota, KaggleAccount

#: The most hours of a session on a CPU or GPU (Kaggle's documentation since 2025).
MAX_SESSION_HOURS = 12.0

#: GPU sessions that an account may have at once.
_AT_ONCE = 2

#: The fewest hours that are worth a session.
_LEAST = 0.5

#: Hours that a kernel may wait for a GPU.
MAX_QUEUE_HOURS = 1.0


def allowed_hours(
    kaggle: KaggleAccount, hours: float, *, report: Callable[[str], None] = lambda _: None
) -> float:
    """Return the hours of a session that may begin now; raise ConfigError if none may."""
    others = kaggle.at_work(timedelta(hours=MAX_SESSION_HOURS + MAX_QUEUE_HOURS))
    if len(others) >= _AT_ONCE:
        raise ConfigError(
            f"Kaggle runs {_AT_ONCE} GPU kernels of an account at once, and {', '.join(others)} "
            "are running; wait until one ends, or cancel it on its page."
        )
    quota = kaggle.quota()
    fit = hours_within_quota(hours, quota)
    if quota:
        report(f"{quota.hours:.1f} GPU hours are left this week; the session takes {fit:g}.")
    return fit


def hours_within_quota(hours: float, quota: GpuQuota | None) -> float:
    """Return the hours of a session within the account's quota; raise ConfigError for too few."""
    if quota is None or quota.hours >= hours:
        return hours
    if quota.hours < min(_LEAST, hours):
        again = f" on {quota.renewed:%A, %d %B, %H:%M} UTC" if quota.renewed else " next week"
        raise ConfigError(
            f"Kaggle's GPU quota is used up ({quota.hours:.1f} hours are left); it is renewed"
            f"{again}."
        )
    return quota.hours

"""Shards that retry failed links: their ids and URLs say which links they fetch again.

The URL is that of the shard that found the links, with ``retry=REASONS&of=ATTEMPTS`` in its
fragment. It holds everything that decides which links are fetched, so that a retry that was
interrupted goes on with the same ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cahlib.core.errors import ConfigError
from cahlib.core.records import DROP_REASONS, DropReason, Shard
from cahlib.core.table_rows import parse_rows_url

#: Reasons that may be over by the next day.
TEMPORARY_REASONS = (
    DropReason.DNS, DropReason.REFUSED, DropReason.TIMEOUT, DropReason.TLS,
    DropReason.DISCONNECTED, DropReason.TOO_OFTEN, DropReason.HTTP_5XX, DropReason.NO_ROBOTS,
    DropReason.LEFT_ALONE,
)  # fmt: skip

#: All reasons for which a link may be fetched again: nobody refused, and no image was rejected.
RETRYABLE_REASONS = (
    *TEMPORARY_REASONS, DropReason.BAD_REDIRECT, DropReason.BAD_HTTP, DropReason.HTTP_4XX,
    DropReason.HTTP_OTHER, DropReason.TOO_MANY_LINKS,
)  # fmt: skip

_ID = re.compile(r"(.+)-retry([1-9][0-9]{0,5})")
_FRAGMENT = re.compile(r"[#&]retry=([a-z0-9_,]+)&of=([0-9,]+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A further attempt at links of one shard."""

    first: Shard  #: that found the links; its attempt is number 0
    number: int  #: of this attempt, from 1
    reasons: tuple[str, ...]  #: why links failed that are fetched again
    attempts: tuple[int, ...]  #: the earlier attempts of which the failed links are taken

    @property
    def shard(self) -> Shard:
        """Return the shard of this attempt; the inverse of `parse_retry`."""
        mark = "&" if parse_rows_url(self.first.url) else "#"
        said = f"retry={','.join(self.reasons)}&of={','.join(map(str, self.attempts))}"
        return Shard(
            id=attempt_id(self.first.id, self.number),
            url=f"{self.first.url}{mark}{said}",
            half=self.first.half,
        )


def parse_retry(shard: Shard) -> Retry | None:
    """Return what a shard tries again, or None for one that reads a crawl or a table."""
    found = _FRAGMENT.search(shard.url)
    id, number = parse_attempt(shard.id)
    if not (found and number):
        return None
    return Retry(
        first=Shard(id=id, url=shard.url[: found.start()], half=shard.half),
        number=number,
        reasons=tuple(found[1].split(",")),
        attempts=tuple(int(each) for each in found[2].split(",") if each),
    )


def attempt_id(first: str, number: int) -> str:
    """Return the id of the shard of an attempt, by that of the first one."""
    return f"{first}-retry{number}" if number else first


def parse_attempt(id: str) -> tuple[str, int]:
    """Return the id of the first attempt, and the number of this one; 0 is the first."""
    found = _ID.fullmatch(id)
    return (found[1], int(found[2])) if found else (id, 0)


def parse_reasons(text: str) -> tuple[str, ...]:
    """Return the reasons of a list that a person typed; raise ConfigError."""
    named = dict.fromkeys(each for part in text.split(",") if (each := part.strip().lower()))
    if not named:
        raise ConfigError(f"only: name reasons, separated by commas: {_listed()}.")
    for each in named:
        _require_retryable(each)
    return tuple(named)


def _require_retryable(reason: str) -> None:
    if reason in {each.value for each in RETRYABLE_REASONS}:
        return
    if any(reason in reasons for reasons in DROP_REASONS.values()):
        raise ConfigError(
            f"only: {reason} is final, so such links are not fetched again; choose from "
            f"{_listed()}."
        )
    raise ConfigError(f"only: {reason!r} is not known; choose from {_listed()}.")


def _listed() -> str:
    return ", ".join(each.value for each in RETRYABLE_REASONS)

"""The policies of hosts, read before anything else is fetched: robots.txt and tdmrep.json, cached.

Each file is requested once per host, however many of its images wait.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from yarl import URL

from cahlib.core.records import DropReason, OptOut
from cahlib.fetch import opt_outs
from cahlib.fetch.robots import (
    MAX_ROBOTS_BYTES,
    RobotsTxt,
    normalize_path,
    path_matches,
    resolve_dots,
)

#: Seconds for which a policy (RFC 9309, 2.4) and a failed robots.txt are cached.
_CACHE_SECONDS, _FAILURE_SECONDS = 24 * 3600, 300

#: Policies cached, more than a shard has hosts, and their bytes together.
_MAX_HOSTS, _MAX_CACHED_BYTES = 50_000, 64 << 20

#: Reasons why a host cannot serve robots.txt, nor any image.
_UNREACHABLE = frozenset(
    {
        DropReason.DNS,
        DropReason.REFUSED,
        DropReason.PRIVATE_ADDRESS,
        DropReason.TLS,
        DropReason.LEFT_ALONE,
    }
)

#: Byte order marks of encodings other than UTF-8.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile("[\udc80-\udcff]")


class SmallFile(NamedTuple):
    """The response to a request for a small file."""

    status: int  #: 200 if the body is complete
    body: bytes  #: decoded


#: Fetches a small file, given its URL and a limit in bytes; follows redirects.
FetchSmallFile = Callable[[str, int], Awaitable[SmallFile | DropReason]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policy:
    """The policy of a host, or the reason why nothing may be fetched from it."""

    robots: RobotsTxt | DropReason
    reserved: list[tuple[str, str, bool]]  #: normalized path, path as served, whether reserved
    size: int  #: bytes of both files

    def reservation(self, target: str) -> str | None:
        """Return the location in tdmrep.json that reserves the rights of a path, or None."""
        # TDMRep: "The most specific match is the first in sequence."
        target = normalize_path(target)
        for pattern, location, reserved in self.reserved:
            if path_matches(pattern, target):
                return location if reserved else None
        return None


class HostPolicies:
    """Decides what hosts allow, by a profile of consent; for use by one event loop."""

    def __init__(
        self, ask: FetchSmallFile, consent: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch, self._clock = ask, clock
        self._honoured = opt_outs.HONOURED[consent]
        self._cache: dict[str, tuple[float, asyncio.Task[_Policy]]] = {}
        self._cached_bytes = 0
        self.not_honoured: list[OptOut] = []  #: opt-outs that the profile does not honour

    async def refusal(self, url: URL, address: str) -> OptOut | DropReason | None:
        """Return why a URL must not be fetched, or None; ``address``: the image's first URL."""
        if "robots.txt" not in self._honoured:
            return None
        origin = f"{url.scheme}://{url.raw_authority}"
        policy = await asyncio.shield(self._policy(origin))
        if isinstance(policy.robots, DropReason):
            return policy.robots
        signal = self._find_opt_out(policy, url.raw_path_qs)
        if signal is None:
            return None
        file = "/.well-known/tdmrep.json" if signal.signal == "tdmrep.json" else "/robots.txt"
        obeyed, now = signal.signal in self._honoured, time.time()
        opt_out = OptOut(
            url=address, where=origin + file, time=now, obeyed=obeyed, **signal._asdict()
        )
        if obeyed:
            return opt_out
        self.not_honoured.append(opt_out)
        return None

    async def close(self) -> None:
        """Cancel all requests."""
        tasks = [task for _, task in self._cache.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _find_opt_out(self, policy: _Policy, target: str) -> opt_outs.OptOutSignal | None:
        assert isinstance(policy.robots, RobotsTxt)
        # servers resolve dots in a path before they answer, so check it in both forms
        names = dict.fromkeys((target, resolve_dots(target)))
        for signal, refusal in (
            ("robots.txt", policy.robots.disallowing_line),
            ("robots.txt content-usage", policy.robots.training_refusal),
            ("tdmrep.json", policy.reservation),
        ):
            for name in names:
                if (words := refusal(name)) is not None:
                    return opt_outs.opt_out_signal(signal, words)
        return None

    def _policy(self, origin: str) -> asyncio.Task[_Policy]:
        now = self._clock()
        since, task = self._cache.get(origin, (0.0, None))
        if task and (not task.done() or now - since < _lifetime(task)):
            return task
        if len(self._cache) >= _MAX_HOSTS or self._cached_bytes > _MAX_CACHED_BYTES:
            self._forget()
        task = asyncio.create_task(self._fetch_policy(origin))
        self._cache[origin] = now, task
        return task

    async def _fetch_policy(self, origin: str) -> _Policy:
        """Fetch one file after the other, so that an image needs one connection at most."""
        answer = await self._fetch(f"{origin}/robots.txt", MAX_ROBOTS_BYTES)
        robots = parse_robots_answer(answer)
        reserved: SmallFile | DropReason = DropReason.HTTP_4XX
        if "tdmrep.json" in self._honoured and isinstance(robots, RobotsTxt):
            reserved = await self._fetch(f"{origin}/.well-known/tdmrep.json", MAX_ROBOTS_BYTES)
            robots = reserved if reserved is DropReason.LEFT_ALONE else robots
        size = sum(len(text.body) for text in (answer, reserved) if isinstance(text, SmallFile))
        self._cached_bytes += size
        there = isinstance(reserved, SmallFile) and reserved.status == 200
        places = opt_outs.parse_tdmrep(reserved.body) if there else []  # type: ignore[union-attr]
        return _Policy(
            robots=robots,
            reserved=[(normalize_path(location), location, which) for location, which in places],
            size=size,
        )

    def _forget(self) -> None:
        """Drop the older half of the cache."""
        for origin, (_, task) in list(self._cache.items())[: len(self._cache) // 2 + 1]:
            if task.done():
                self._cached_bytes -= task.result().size
                del self._cache[origin]


def parse_robots_answer(answer: SmallFile | DropReason) -> RobotsTxt | DropReason:
    """Return the rules of a response by RFC 9309, 2.3.1, or the reason to drop the host's images.

    Without a file everything is allowed; a failure (5xx, timeout) or an unreadable file (partial,
    broken coding) allows nothing. A host that cannot be reached has that reason.
    """
    if answer in _UNREACHABLE:
        assert isinstance(answer, DropReason)
        return answer
    if answer is DropReason.BAD_REDIRECT:
        return RobotsTxt("")
    if isinstance(answer, DropReason) or answer.status >= 500 or answer.status == 429:
        return DropReason.NO_ROBOTS
    return RobotsTxt(decode_robots(answer.body))


def decode_robots(body: bytes) -> str:
    """Return a robots.txt as text, with invalid bytes percent-encoded as in URLs."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if body.startswith(mark)), "")
    if not encoding and b"\0" in body[:2]:  # UTF-16 without a mark, beginning with an ASCII letter
        encoding = "utf-16-be" if body.startswith(b"\0") else "utf-16-le"
    if encoding:
        return body.decode(encoding, "replace")
    found = body.decode("utf-8-sig", "surrogateescape")
    return _SURROGATE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", found)


def _lifetime(task: asyncio.Task[_Policy]) -> float:
    return _FAILURE_SECONDS if isinstance(task.result().robots, DropReason) else _CACHE_SECONDS

"""What the owners of hosts refuse before anything is fetched: robots.txt and tdmrep.json, cached.

Each host is asked once for either file, however many of its images wait. It does not know what
stands in the header of an image.
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

from cahlib.fetch import opt_outs
from cahlib.fetch.robots import (
    MAX_ROBOTS_BYTES,
    RobotsTxt,
    normalize_path,
    path_matches,
    resolve_dots,
)
from cahlib.records import OptOut, Reason

#: A host is remembered so long (RFC 9309, 2.4), and a failure of its robots.txt.
_KNOWN, _FAILED = 24 * 3600, 300

#: Remembered: more hosts than a shard has. What they say may take so many bytes together.
_MOST_HOSTS, _MOST_KEPT = 50_000, 64 << 20

#: Why a host says nothing, and will not serve images either.
_BEYOND_REACH = frozenset(
    {Reason.DNS, Reason.REFUSED, Reason.PRIVATE_ADDRESS, Reason.TLS, Reason.LEFT_ALONE}
)

#: How a file in another encoding than UTF-8 begins.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_STRAY = re.compile("[\udc80-\udcff]")


class SmallFile(NamedTuple):
    """An answer to the question for a small file."""

    status: int  #: 200 if the body is all of it
    body: bytes  #: without codings


#: Asks for a small file, of which at most so many bytes matter; follows redirects.
FetchSmallFile = Callable[[str, int], Awaitable[SmallFile | Reason]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What the owner of a host said, or the reason why nothing may be fetched from it."""

    robots: RobotsTxt | Reason
    reserved: list[tuple[str, str, bool]]  #: a place in one spelling, as served, and whether
    size: int  #: bytes of both

    def reservation(self, target: str) -> str | None:
        """The place of the tdmrep.json that reserves the rights of a path, or None."""
        # TDMRep: "The most specific match is the first in sequence."
        target = normalize_path(target)
        for pattern, location, reserved in self.reserved:
            if path_matches(pattern, target):
                return location if reserved else None
        return None


class HostPolicies:
    """Says what owners refuse, by consent's profile; used by one event loop."""

    def __init__(
        self, ask: FetchSmallFile, consent: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._clock = ask, clock
        self._honoured = opt_outs.HONOURED[consent]
        self._known: dict[str, tuple[float, asyncio.Task[_Rules]]] = {}
        self._kept = 0
        self.not_honoured: list[OptOut] = []  #: what owners refuse in a way that is not honoured

    async def refusal(self, url: URL, address: str) -> OptOut | Reason | None:
        """Why an URL must not be fetched, with the evidence; ``address``: the image's first URL."""
        if "robots.txt" not in self._honoured:
            return None
        origin = f"{url.scheme}://{url.raw_authority}"
        rules = await asyncio.shield(self._rules(origin))
        if isinstance(rules.robots, Reason):
            return rules.robots
        said = self._said(rules, url.raw_path_qs)
        if said is None:
            return None
        file = "/.well-known/tdmrep.json" if said.signal == "tdmrep.json" else "/robots.txt"
        obeyed, now = said.signal in self._honoured, time.time()
        told = OptOut(url=address, where=origin + file, time=now, obeyed=obeyed, **said._asdict())
        if obeyed:
            return told
        self.not_honoured.append(told)
        return None

    async def close(self) -> None:
        """End what is being asked."""
        tasks = [task for _, task in self._known.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _said(self, rules: _Rules, target: str) -> opt_outs.OptOutSignal | None:
        assert isinstance(rules.robots, RobotsTxt)
        # servers tidy a path before they answer: what is refused is refused under both its names
        names = dict.fromkeys((target, resolve_dots(target)))
        for signal, refusal in (
            ("robots.txt", rules.robots.refusal),
            ("robots.txt content-usage", rules.robots.training_refusal),
            ("tdmrep.json", rules.reservation),
        ):
            for name in names:
                if (words := refusal(name)) is not None:
                    return opt_outs.opt_out_signal(signal, words)
        return None

    def _rules(self, origin: str) -> asyncio.Task[_Rules]:
        now = self._clock()
        since, task = self._known.get(origin, (0.0, None))
        if task and (not task.done() or now - since < _lasts(task)):
            return task
        if len(self._known) >= _MOST_HOSTS or self._kept > _MOST_KEPT:
            self._forget()
        task = asyncio.create_task(self._learn(origin))
        self._known[origin] = now, task
        return task

    async def _learn(self, origin: str) -> _Rules:
        """Ask for one file after the other: an image in work is one connection at most."""
        answer = await self._ask(f"{origin}/robots.txt", MAX_ROBOTS_BYTES)
        robots = parse_robots_answer(answer)
        reserved: SmallFile | Reason = Reason.HTTP_4XX
        if "tdmrep.json" in self._honoured and isinstance(robots, RobotsTxt):
            reserved = await self._ask(f"{origin}/.well-known/tdmrep.json", MAX_ROBOTS_BYTES)
            robots = reserved if reserved is Reason.LEFT_ALONE else robots
        size = sum(len(text.body) for text in (answer, reserved) if isinstance(text, SmallFile))
        self._kept += size
        there = isinstance(reserved, SmallFile) and reserved.status == 200
        places = opt_outs.parse_tdmrep(reserved.body) if there else []  # type: ignore[union-attr]
        return _Rules(
            robots=robots,
            reserved=[(normalize_path(location), location, which) for location, which in places],
            size=size,
        )

    def _forget(self) -> None:
        """Drop the older half of what is known."""
        for origin, (_, task) in list(self._known.items())[: len(self._known) // 2 + 1]:
            if task.done():
                self._kept -= task.result().size
                del self._known[origin]


def parse_robots_answer(answer: SmallFile | Reason) -> RobotsTxt | Reason:
    """The rules in an answer, by RFC 9309, 2.3.1: without a file all is allowed, but what fails
    (5xx, no answer in time) or cannot be read (a part, broken packing) allows nothing.

    A host that is not asked or reached at all has the reason why its images will not be either.
    """
    if answer in _BEYOND_REACH:
        assert isinstance(answer, Reason)
        return answer
    if answer is Reason.BAD_REDIRECT:
        return RobotsTxt("")
    if isinstance(answer, Reason) or answer.status >= 500 or answer.status == 429:
        return Reason.NO_ROBOTS
    return RobotsTxt(decode_robots(answer.body))


def decode_robots(body: bytes) -> str:
    """Return a robots.txt as text; what is not in its encoding is escaped as in addresses."""
    encoding = "utf-8-sig"
    for mark, name in _MARKS:
        if body.startswith(mark):
            encoding = name
            break
    else:
        if b"\0" in body[:2]:  # UTF-16 without a mark, as it begins with an ASCII letter
            encoding = "utf-16-be" if body.startswith(b"\0") else "utf-16-le"
    if encoding != "utf-8-sig":
        return body.decode(encoding, "replace")
    found = body.decode(encoding, "surrogateescape")
    return _STRAY.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", found)


def _lasts(task: asyncio.Task[_Rules]) -> float:
    return _FAILED if isinstance(task.result().robots, Reason) else _KNOWN

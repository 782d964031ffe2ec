"""What a worker says to a tracker: its API as methods, with patience; standard library only."""

from __future__ import annotations

import http.client
import json
import logging
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import cahlib
from cahlib.core.errors import CahError, ConfigError, RunError
from cahlib.core.records import Shard, Stats
from cahlib.core.table_rows import is_shareable, parse_rows_url

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: What a shard may be called: its id becomes the names of files here.
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
#: What a parcel may be called below the place of parcels: no way up, and nothing to interpret.
_NAME = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")


class TrackerAway(RunError):
    """The tracker does not answer, or cannot now; the same may be asked again."""

    answered = False  #: by the tracker itself, which says why it cannot


class Refused(CahError):
    """The tracker will not do it, and says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A shard that the tracker gave us."""

    number: int
    shard: Shard
    parcel: dict[str, Any] | None  #: for a GPU worker: url, sha256 and size


class Tracker:
    """A tracker by its URL; safe for several threads.

    Each call raises Refused, or TrackerAway once it has tried for ``patience`` seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str = "",
        team: str = "",
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"tracker: {url} is no http(s) URL.")
        self.url, self.secret, self._team = url.rstrip("/"), secret, team
        self._sleep = sleep
        self.upload = ""  #: where it wants parcels, as it said when we joined

    def join(
        self, nickname: str, kind: str, *, proof: str = "", patience: float = 0
    ) -> dict[str, Any]:
        """Register as a "hybrid", "cpu" or "gpu" worker; the answer says name, lease, upload.

        ``proof`` is the secret of the nickname.
        """
        body = {"nickname": nickname, "kind": kind}
        if proof:
            body["nickname_secret"] = proof
        if self._team:
            body["team"] = self._team
        answer = self._ask("/v1/workers", body, patience=patience)
        self.secret, self.upload = answer["secret"], answer["upload"]
        return answer

    def persist(self, ask: Callable[[], T]) -> T:
        """Ask until the tracker can: as long as it answers itself, as when its database is away."""
        while True:
            try:
                return ask()
            except TrackerAway as error:
                if not error.answered:
                    raise
                _log.warning("%s Trying again.", error)
            self._sleep(10 * random.uniform(0.5, 1.5))

    def lease(self, count: int = 1, *, patience: float = 0) -> tuple[list[Leased], bool]:
        """Return the next shards, ``count`` at most; and whether there will be none any more.

        Raise RunError for a shard that would touch what is not its own.
        """
        answer = self._ask("/v1/lease", {"count": min(count, 64)}, patience=patience)
        return [self._leased(given) for given in answer["shards"]], bool(answer["finished"])

    def _leased(self, given: dict[str, Any]) -> Leased:
        shard = Shard(id=given["id"], url=given["url"], half=given["half"])
        self._check(shard, given["parcel"])
        return Leased(number=given["number"], shard=shard, parcel=given["parcel"])

    def beat(self, numbers: Iterable[int], progress: str = "", *, patience: float = 0) -> set[int]:
        """Say that we live; which of these shards are still ours."""
        body = {"shards": sorted(numbers), "progress": progress}
        return set(self._ask("/v1/heartbeat", body, patience=patience)["shards"])

    def complete(
        self,
        number: int,
        *,
        similarities: Mapping[str, float],
        stats: Stats,
        output: str = "",
        patience: float = 0,
    ) -> set[str]:
        """Tell of a shard's pairs by their uids; return those that others were first to bring."""
        uids = sorted(similarities)
        scores = [round(similarities[uid], 4) for uid in uids]
        body = {"uids": uids, "similarities": scores, "tally": stats.as_dict(), "output": output}
        return set(self._on(number, "complete", body, patience)["lost"])

    def deliver(
        self, number: int, parcel: dict[str, Any], stats: Stats, *, patience: float = 0
    ) -> bool:
        """A parcel (url, sha256, size) is uploaded; False if the tracker knew."""
        account = {k: v for k, v in stats.as_dict().items() if k != "judge"}
        body = parcel | {"tally": account}
        return bool(self._on(number, "parcel", body, patience)["counted"])

    def release(self, number: int, *, patience: float = 0) -> None:
        """Give a shard back."""
        self._on(number, "release", {}, patience)

    def fail(self, number: int, reason: str, *, patience: float = 0) -> None:
        """It did not work."""
        self._on(number, "fail", {"reason": reason[:20_000]}, patience)

    def refetch(self, number: int, reason: str, *, patience: float = 0) -> None:
        """The parcel could not be fetched."""
        self._on(number, "refetch", {"reason": reason[:20_000]}, patience)

    def taken(self, number: int, uids: Iterable[str], *, patience: float = 0) -> set[str]:
        """Return which of a shard's pairs a completed shard has; leave them out."""
        return set(self._on(number, "pairs", {"uids": sorted(set(uids))}, patience)["taken"])

    def _check(self, shard: Shard, parcel: dict[str, Any] | None) -> None:
        """Whoever speaks for the tracker chooses no files of this machine, and no other storage."""
        rows = parse_rows_url(shard.url)
        fine = _ID.fullmatch(shard.id) and shard.half in (0, 1)
        fine = fine and (rows is None or is_shareable(rows.table))
        if not fine or (parcel and not is_below(parcel["url"], self.upload)):
            raise RunError(
                f"The tracker {self.url} gave out {shard.id!r:.300} as a shard's name, a table "
                "of no other machine's, or a parcel that is not where it wants parcels; it is "
                "broken, or not to be trusted."
            )

    def _on(self, number: int, what: str, body: Any, patience: float) -> dict[str, Any]:
        return self._ask(f"/v1/shards/{number}/{what}", body, patience=patience)

    def _ask(self, path: str, body: Any, *, patience: float) -> dict[str, Any]:
        deadline, pause = time.monotonic() + patience, 0.25
        while True:
            try:
                return self._post(path, body)
            except TrackerAway:
                if time.monotonic() + pause > deadline:
                    raise
            # Not all at once, when the tracker comes back to a thousand workers.
            self._sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 30)

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        # with the version: an older one, which gave none, is told by the tracker to update
        agent = f"cahlib/{cahlib.__version__}"
        headers = {"Content-Type": "application/json", "User-Agent": agent}
        if self.secret:
            headers["Authorization"] = f"Bearer {self.secret}"
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise _translated(self.url, error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TrackerAway(f"The tracker {self.url} does not answer ({error}).") from error
        if not isinstance(found, dict):
            raise TrackerAway(f"{self.url} does not answer as a tracker does.")
        return found


def is_below(url: str, upload: str) -> bool:
    """Return whether a parcel's URL is below the place of parcels, and names nothing else."""
    below = upload.rstrip("/") + "/"
    return url.startswith(below) and bool(_NAME.fullmatch(url, len(below)))


def _translated(url: str, error: urllib.error.HTTPError) -> CahError:
    """Return what an HTTP error means; what is not a tracker's word may be a proxy's, and pass."""
    answered = True
    try:
        text = str(json.loads(error.read(100_000))["detail"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        # a proxy's, whose tracker is being restarted
        text, answered = f"{url} answers {error.code}.", error.code in (502, 503, 504)
    if error.code == 429 or error.code >= 500:
        away = TrackerAway(text)
        away.answered = answered
        return away
    return Refused(error.code, text)

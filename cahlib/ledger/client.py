"""A tracker's API as methods, with retries; standard library only."""

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
from cahlib.core.retry import backoff, retry
from cahlib.core.table_rows import is_shareable, parse_rows_url

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

#: Allowed shard ids, which become file names on this machine.
_SHARD_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
#: Allowed parcel paths below the upload URL: no way up, and nothing to interpret.
_PARCEL_PATH = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")


class TrackerUnavailable(RunError):
    """The tracker does not answer, or cannot serve the request now; it may be repeated."""

    answered = False  #: by the tracker itself, which gives the reason


class RequestRejected(CahError):
    """The tracker rejects a request and gives the reason."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedShard:
    """A shard leased from the tracker."""

    number: int
    shard: Shard
    parcel: dict[str, Any] | None  #: of a GPU worker: url, sha256 and size


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The identity of a worker to the tracker, and its intervals."""

    nickname: str
    kind: str  #: "hybrid", "cpu" or "gpu"
    heartbeat_seconds: float = 30
    poll_seconds: float = 5  #: between requests for a shard while there is none


class TrackerClient:
    """A tracker by its URL; safe for several threads.

    Each call raises RequestRejected, or TrackerUnavailable after ``retry_seconds`` of attempts.
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
            raise ConfigError(f"tracker: {url} is not an http(s) URL.")
        self.url, self.secret, self._team = url.rstrip("/"), secret, team
        self._sleep = sleep
        self.upload_url = ""  #: where it wants parcels, as registration returned

    def join(
        self, nickname: str, kind: str, *, nickname_secret: str = "", retry_seconds: float = 0
    ) -> dict[str, Any]:
        """Register as a "hybrid", "cpu" or "gpu" worker; return name, lease_seconds, upload."""
        body = {"nickname": nickname, "kind": kind}
        if nickname_secret:
            body["nickname_secret"] = nickname_secret
        if self._team:
            body["team"] = self._team
        answer = self._ask("/v1/workers", body, retry_seconds=retry_seconds)
        self.secret, self.upload_url = answer["secret"], answer["upload"]
        return answer

    def wait_while_unavailable(self, call: Callable[[], _T]) -> _T:
        """Repeat a call while the tracker answers that it is unavailable (no database)."""
        while True:
            try:
                return call()
            except TrackerUnavailable as error:
                if not error.answered:
                    raise
                _log.warning("%s Retrying.", error)
            self._sleep(10 * random.uniform(0.5, 1.5))

    def lease(self, count: int = 1, *, retry_seconds: float = 0) -> tuple[list[LeasedShard], bool]:
        """Return the next shards, at most ``count``, and whether there will be no more.

        Raise RunError for a shard id or parcel URL that is not allowed.
        """
        answer = self._ask("/v1/lease", {"count": min(count, 64)}, retry_seconds=retry_seconds)
        return [self._leased(each) for each in answer["shards"]], bool(answer["finished"])

    def _leased(self, lease: dict[str, Any]) -> LeasedShard:
        shard = Shard(id=lease["id"], url=lease["url"], half=lease["half"])
        self._check_lease(shard, lease["parcel"])
        return LeasedShard(number=lease["number"], shard=shard, parcel=lease["parcel"])

    def heartbeat(
        self, numbers: Iterable[int], progress: str = "", *, retry_seconds: float = 0
    ) -> set[int]:
        """Renew the leases; return which of these shards are still held."""
        body = {"shards": sorted(numbers), "progress": progress}
        return set(self._ask("/v1/heartbeat", body, retry_seconds=retry_seconds)["shards"])

    def complete(
        self,
        number: int,
        *,
        similarities: Mapping[str, float],
        stats: Stats,
        output: str = "",
        retry_seconds: float = 0,
    ) -> set[str]:
        """Complete a shard; return the uids of its pairs that other shards brought first."""
        uids = sorted(similarities)
        scores = [round(similarities[uid], 4) for uid in uids]
        body = {"uids": uids, "similarities": scores, "tally": stats.as_dict(), "output": output}
        return set(self._post_shard(number, "complete", body, retry_seconds)["lost"])

    def deliver(
        self, number: int, parcel: dict[str, Any], stats: Stats, *, retry_seconds: float = 0
    ) -> bool:
        """Report an uploaded parcel (url, sha256, size); return False if the tracker knew."""
        scraped = {k: v for k, v in stats.as_dict().items() if k != "judge"}
        body = parcel | {"tally": scraped}
        return bool(self._post_shard(number, "parcel", body, retry_seconds)["counted"])

    def release(self, number: int, *, retry_seconds: float = 0) -> None:
        """Return a shard to the list."""
        self._post_shard(number, "release", {}, retry_seconds)

    def fail(self, number: int, reason: str, *, retry_seconds: float = 0) -> None:
        """Report that a shard failed."""
        self._post_shard(number, "fail", {"reason": reason[:20_000]}, retry_seconds)

    def refetch(self, number: int, reason: str, *, retry_seconds: float = 0) -> None:
        """Report a parcel that cannot be downloaded."""
        self._post_shard(number, "refetch", {"reason": reason[:20_000]}, retry_seconds)

    def claimed_pairs(
        self, number: int, uids: Iterable[str], *, retry_seconds: float = 0
    ) -> set[str]:
        """Return which of a shard's pairs a completed shard has; omit them from the dataset."""
        return set(
            self._post_shard(number, "pairs", {"uids": sorted(set(uids))}, retry_seconds)["taken"]
        )

    def _check_lease(self, shard: Shard, parcel: dict[str, Any] | None) -> None:
        """Raise RunError if a lease names files of this machine, or other storage."""
        rows = parse_rows_url(shard.url)
        valid = _SHARD_ID.fullmatch(shard.id) and shard.half in (0, 1)
        valid = valid and (rows is None or is_shareable(rows.table))
        if not valid or (parcel and not is_below_upload_url(parcel["url"], self.upload_url)):
            raise RunError(
                f"The tracker {self.url} leased the shard {shard.id!r:.300}, whose id, table or "
                "parcel URL is not allowed; it is broken or cannot be trusted."
            )

    def _post_shard(
        self, number: int, call: str, body: Any, retry_seconds: float
    ) -> dict[str, Any]:
        return self._ask(f"/v1/shards/{number}/{call}", body, retry_seconds=retry_seconds)

    def _ask(self, path: str, body: Any, *, retry_seconds: float) -> dict[str, Any]:
        return retry(
            lambda: self._post(path, body),
            errors=TrackerUnavailable,
            pauses=backoff(0.25, most=30),
            timeout=retry_seconds,
            # at random, so that a thousand workers do not call at once when the tracker is back
            sleep=lambda pause: self._sleep(pause * random.uniform(0.5, 1.5)),
        )

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        # with the version: the tracker tells versions so old that they sent none to update
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
                raise _to_exception(self.url, error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TrackerUnavailable(
                f"The tracker {self.url} does not answer ({error})."
            ) from error
        if not isinstance(found, dict):
            raise TrackerUnavailable(f"{self.url} does not answer like a tracker; check the URL.")
        return found


def is_below_upload_url(url: str, upload_url: str) -> bool:
    """Return whether a parcel's URL is a plain path below the upload URL."""
    below = upload_url.rstrip("/") + "/"
    return url.startswith(below) and bool(_PARCEL_PATH.fullmatch(url, len(below)))


def _to_exception(url: str, error: urllib.error.HTTPError) -> CahError:
    """Return the exception for an HTTP error; one not sent by a tracker may be a proxy's."""
    answered = True
    try:
        text = str(json.loads(error.read(100_000))["detail"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        # from a proxy whose tracker is restarting
        text, answered = f"{url} answers {error.code}.", error.code in (502, 503, 504)
    if error.code == 429 or error.code >= 500:
        unavailable = TrackerUnavailable(text)
        unavailable.answered = answered
        return unavailable
    return RequestRejected(error.code, text)

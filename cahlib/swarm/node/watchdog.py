"""On the head: delete the run's servers when nobody drives them, or when their time is over.

It is copied to the server and started by systemd's `crawl-watchdog`, with the standard library
only and as a user of its own, apart from everything that the crawl can write. A driver's heartbeat
is a label that it renews at the cloud. Time is monotonic, and silence counts only between two
answers of the cloud: while the cloud does not answer, nobody could have renewed the label.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

#: The file of its instructions, which is the name of systemd's credential.
INSTRUCTIONS_FILE = "watchdog.json"

#: The label that a driver renews, and the seconds without renewal after which it has left.
_HEARTBEAT_LABEL, _HEARTBEAT_TIMEOUT = "alive", 300.0

#: Seconds in which the cloud must answer.
_TIMEOUT = 30.0


class CloudUnavailable(Exception):
    """The cloud does not answer, or refuses a request, for now."""


@dataclass(frozen=True)
class Instructions:
    """A driver's instructions; all times are in seconds, 0 for none."""

    token: str = field(repr=False)
    endpoint: str
    labels: Mapping[str, str]  #: of the run's servers
    node: str  #: the name of this server
    launch: str  #: identifies the setup; the time starts again with each
    silence: float  #: for which a driver may send no heartbeat
    end: float  #: after which the servers are deleted, with or without a driver
    paid: float  #: after which they are deleted without a driver
    look: float = 60  #: between two requests to the cloud

    def __post_init__(self) -> None:
        if not all(self.labels.get(key) for key in ("project", "run")):
            raise ValueError("the labels do not name a run, so they would select all servers")


@dataclass(frozen=True)
class Observation:
    """The state of the run so far; it survives a restart."""

    launch: str = ""
    heard: str = ""  #: the servers and their heartbeats, as last listed by the cloud
    silent: float = 0  #: seconds since that changed
    total: float = 0  #: seconds since the launch


def observe(
    seen: Observation, instructions: Instructions, heard: str, passed: float
) -> Observation:
    """Return the state after an answer of the cloud, ``passed`` seconds after the last one."""
    total = seen.total + passed
    if heard != seen.heard:
        return replace(seen, heard=heard, silent=0, total=total)
    return replace(seen, silent=seen.silent + min(passed, 2 * instructions.look), total=total)


def deletion_reason(seen: Observation, instructions: Instructions) -> str:
    """Return why the servers are to be deleted; "" if they are not."""
    if seen.silent >= instructions.silence:
        return f"no driver has sent a heartbeat for {seen.silent / 60:.0f} minutes"
    if instructions.end and seen.total >= instructions.end:
        return "the run's hours are over"
    if (
        instructions.paid
        and seen.total >= instructions.paid
        and seen.silent >= min(_HEARTBEAT_TIMEOUT, instructions.silence)
    ):
        return "nobody drives them, and the hours or the money allowed are used up"
    return ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the token is for the cloud alone."""

    def redirect_request(self, *_: Any) -> None:
        """Return None, which refuses the redirect."""


class Cloud:
    """The few requests to Hetzner's API that are needed, within the labels of one run."""

    def __init__(self, instructions: Instructions) -> None:
        self._instructions = instructions
        self._opener = urllib.request.build_opener(_NoRedirects)

    def servers(self) -> list[dict[str, Any]]:
        """Return the run's servers."""
        return self._listed("servers")

    def delete(self, server: Mapping[str, Any]) -> None:
        """Delete a server, if it still exists."""
        self._ask("DELETE", f"servers/{int(server['id'])}")

    def clean(self) -> None:
        """Delete the run's SSH key: without it and servers, a driver knows that the run is over."""
        for each in self._listed("ssh_keys"):
            self._ask("DELETE", f"ssh_keys/{int(each['id'])}")

    def _listed(self, kind: str) -> list[dict[str, Any]]:
        """Return only what has the run's labels, whatever else the cloud may list."""
        labels, page, found = self._instructions.labels, 1, list[dict[str, Any]]()
        selector = ",".join(f"{key}=={value}" for key, value in labels.items())
        try:
            while page:
                query = urllib.parse.urlencode({"label_selector": selector, "page": page})
                answer = self._ask("GET", f"{kind}?{query}")
                found += (each for each in answer[kind] if labels.items() <= each["labels"].items())
                page = answer["meta"]["pagination"]["next_page"]
        except (KeyError, TypeError, AttributeError) as error:
            raise CloudUnavailable(
                f"The cloud sent an invalid answer ({type(error).__name__})"
            ) from None
        return found

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._instructions.endpoint}/{path}", method=method)
        request.add_unredirected_header("Authorization", f"Bearer {self._instructions.token}")
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                return dict(json.loads(answer.read() or b"{}"))
        except urllib.error.HTTPError as error:
            if method == "DELETE" and error.code == 404:
                return {}
            refused = "The token was refused" if error.code in (401, 403) else "The cloud failed"
            raise CloudUnavailable(f"{refused} ({error.code})") from None
        except (OSError, HTTPException, ValueError, TypeError) as error:
            raise CloudUnavailable(f"The cloud does not answer ({type(error).__name__})") from None


class Watchdog:
    """Watches the cloud until the servers are to be deleted, and then deletes them."""

    def __init__(
        self,
        instructions: Instructions,
        state: Path,
        *,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._instructions, self._state, self._report = instructions, state, report
        self._clock, self._sleep = clock, sleep
        self._cloud = Cloud(instructions)
        self._last_report = ""

    def work(self) -> None:
        """Watch, and return when the cloud lists none of the servers any more."""
        seen, last = self._read(), self._clock()
        while not (why := deletion_reason(seen, self._instructions)):
            try:
                heard = _heartbeats(self._cloud.servers())
                now = self._clock()
                seen, last = observe(seen, self._instructions, heard, now - last), now
                self._write(seen)
                self._report_once("The cloud answers.")
            except CloudUnavailable as error:
                self._report_once(f"{error}; asking again.")
            self._sleep(self._instructions.look)
        self._report(f"Deleting the run's servers, this one last: {why}.")
        while not self._deleted():
            self._sleep(min(self._instructions.look, 10))

    def _deleted(self) -> bool:
        """Delete the other servers, or this one if it is the last; return whether none is left."""
        try:
            servers = self._cloud.servers()
            others = [each for each in servers if each["name"] != self._instructions.node]
            if not others:
                self._cloud.clean()
        except CloudUnavailable as error:
            self._report_once(f"{error}; asking again.")
            return False
        for each in others or servers:
            try:
                if each.get("status") != "deleting":
                    self._cloud.delete(each)
            except CloudUnavailable as error:  # the next ones may work
                self._report_once(f"{each['name']}: {error}; asking again.")
        return not servers

    def _report_once(self, sentence: str) -> None:
        """Report a sentence unless it was the last one."""
        if sentence != self._last_report:
            self._last_report = sentence
            self._report(sentence)

    def _read(self) -> Observation:
        """Return the state from before a restart, if it is of this launch."""
        with suppress(OSError, ValueError, TypeError):
            seen = Observation(**json.loads(self._state.read_text(encoding="utf-8")))
            if seen.launch == self._instructions.launch:
                return seen
        return Observation(launch=self._instructions.launch)

    def _write(self, seen: Observation) -> None:
        """Store the state; a full disk does not end the watch."""
        fresh = self._state.with_suffix(".new")
        with suppress(OSError):
            fresh.write_text(json.dumps(asdict(seen)), encoding="utf-8")
            fresh.replace(self._state)


def _heartbeats(servers: list[dict[str, Any]]) -> str:
    """Return the signs of a driver: the servers that exist, and their heartbeats."""
    return json.dumps(
        sorted((each["id"], each["labels"].get(_HEARTBEAT_LABEL, "")) for each in servers)
    )


def run_watchdog() -> None:
    """Run with systemd's credential and its state folder, which survives a restart."""
    instructions = Path(os.environ["CREDENTIALS_DIRECTORY"], INSTRUCTIONS_FILE).read_text(
        encoding="utf-8"
    )
    state = Path(os.environ["STATE_DIRECTORY"], "seen.json")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Watchdog(Instructions(**json.loads(instructions)), state, report=logging.info).work()


if __name__ == "__main__":
    run_watchdog()

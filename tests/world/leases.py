"""A worker and a tracker with faults between them: requests lost, kills at any step."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

from sqlalchemy import select

from cahlib.ledger.client import TrackerClient, WorkerOptions
from cahlib.ledger.local import LocalLedger
from cahlib.ledger.remote import RemoteLedger
from cahlib.ledger.schema import shards
from cahlib.tracker import admin
from cahlib.tracker.app import create_app
from cahlib.tracker.models import TrackerRules, WorkerKind
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.schema import failures, people, workers
from cahlib.tracker.service import Service, TrackerSettings
from tests.tracker.conftest import Clock, wats
from tests.world import memory

LEASE = 60
PARCEL = {"url": "s3://parcels/a.tar", "sha256": "0" * 64, "size": 5}


class Switch:
    """An application that serves whichever tracker is put behind it, or seems to be away."""

    app = None
    mode = "up"

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif self.mode == "away":
            await self._fail(send)
        elif self.mode == "lossy" and scope["path"].startswith("/v1/shards/"):

            async def nowhere(message):
                pass

            await self.app(scope, receive, nowhere)  # it is done, and the answer gets lost
            await self._fail(send)
        else:
            await self.app(scope, receive, send)

    @staticmethod
    async def _fail(send):
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"away"})


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Burns down at each change of a file, and kills the process at its end."""

    left = 0

    def burn(self):
        if self.left:
            self.left -= 1
            if not self.left:
                raise Killed


def fatal(name):
    """A method of Ledger before and after which the process may be killed."""

    def method(self, *arguments, **options):
        self.fuse.burn()
        result = getattr(super(DyingLedger, self), name)(*arguments, **options)
        self.fuse.burn()
        return result

    return method


class DyingLedger(LocalLedger):
    add, lease, commit, mark_done, forget, release = map(
        fatal, ("add", "lease", "commit", "mark_done", "forget", "release")
    )


class DyingShared(RemoteLedger):
    """Sends nothing by itself: its test says when."""

    def _report(self):
        pass

    def _save(self, reports):
        self._ledger.fuse.burn()
        super()._save(reports)
        self._ledger.fuse.burn()


class Hearing(logging.Handler):
    """The lines of the worker's log."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def emit(self, record):
        self.heard.append(record.getMessage())


class World:
    """A tracker with some shards, a worker of it, and a rival for them."""

    def __init__(self, switch, address, template, *, kind, count, shared=DyingShared):
        self.switch, self.address, self.kind, self._shared = switch, address, kind, shared
        self.folder = Path(tempfile.mkdtemp(dir=memory.folder())) / "run"
        self.folder.mkdir()
        shutil.copy(template, self.folder / "tracker.sqlite")
        url = f"sqlite:///{self.folder / 'tracker.sqlite'}"
        self.clock, self.fuse, self.log = Clock(), Fuse(), Hearing()
        rules = TrackerRules(
            lease_seconds=LEASE, upload_url="s3://parcels", max_failures=99, max_attempts=10_000
        )
        limits = RequestLimits(address=0, worker=0, newcomers=0)
        settings = TrackerSettings(database=url, rules=rules, limits=limits)
        switch.app = switch.app or create_app(
            settings
        )  # once: putting its routes together takes long
        switch.app.state.service = service = Service(settings, clock=self.clock)
        switch.mode = "up"
        self.service, self.lease_store, self.database = service, service.leases, service.database
        self.clock.now += 1000
        admin.add_wats(self.database, wats(count))
        if kind == "gpu":
            cpu = self.lease_store.register("carl", WorkerKind.CPU)[1]
            while lease := self.lease_store.lease(cpu):
                self.lease_store.deliver(cpu, lease.number, PARCEL)
        self.rival = self.lease_store.register("bob", WorkerKind(kind))[1]
        logging.getLogger("cahlib.ledger.remote").addHandler(self.log)
        self.secrets = set()

    def launch(self, **times):
        self.ledger = DyingLedger(self.folder / "ledger.sqlite")
        self.ledger.fuse = self.fuse
        self.ledger.recover()
        times = {"heartbeat_seconds": 3600, "poll_seconds": 0} | times
        options = WorkerOptions(nickname="ann", kind=self.kind, **times)
        path, tracker = self.folder / "tracker.json", TrackerClient(self.address)
        found = self._shared(self.ledger, tracker, path, options, clock=self.clock)
        try:
            found.__enter__()
        except BaseException:
            self.ledger.close()
            raise
        self.secrets.add(found._tracker.secret)
        return found

    def close(self):
        logging.getLogger("cahlib.ledger.remote").removeHandler(self.log)
        self.ledger.close()
        self.service.close()
        shutil.rmtree(self.folder.parent)

    def held(self):
        """The shards that the tracker counts as the worker's, whoever it was at the time."""
        holds = shards.c.state.in_(["leased", "judging"])
        who = workers.c.nickname == "ann"
        query = select(shards.c.number).join(workers, workers.c.id == shards.c.worker)
        with self.database.read() as connection:
            return set(connection.execute(query.where(holds, who)).scalars())

    def refused(self, id):
        """Whether the tracker would not hear how a shard's lease ended."""
        words = ("is not leased to this worker", "does not know this worker")
        return any(m.startswith(f"{id}: ") and any(w in m for w in words) for m in self.log.heard)

    def check(self, worker, *, done, failed=(), orphans=frozenset()):
        """All is told that there was to tell, and each thing counts once."""
        assert worker._send_due() and not worker._reports.due()
        working = worker._reports.in_progress()
        assert working.keys() <= {s.id for s in worker.in_state("todo", "leased", "sealed")}
        assert self.held() <= {each.number for each in working.values()} | orphans
        with self.database.read() as connection:
            rows = {row.id: row for row in connection.execute(select(shards))}
            ours = set(
                connection.execute(
                    select(workers.c.id).where(workers.c.nickname == "ann")
                ).scalars()
            )
            told = set(
                connection.execute(
                    select(shards.c.id)
                    .join(failures, failures.c.shard == shards.c.number)
                    .where(failures.c.worker.in_(ours))
                ).scalars()
            )
            person = connection.execute(select(people).where(people.c.nickname == "ann")).first()
        counted = (person.done, person.scraped) if person else (0, 0)
        brought = [r for r in rows.values() if r.scraper in ours]
        closed = [r for r in rows.values() if r.state == "done" and r.worker in ours]
        assert counted == (len(closed), len(brought))
        assert set(done) <= {s.id for s in worker.in_state("done")}
        known = {row.id for row in (brought if self.kind == "cpu" else closed)}
        assert all(id in known or self.refused(id) for id in done)
        if self.kind != "gpu":  # what two of them say of a parcel is forgotten with it
            assert all(id in told or self.refused(id) for id in failed)


def uid(shard):
    """That of a shard's only pair."""
    return shard.id.encode().hex().rjust(32, "0")


def judged(shard):
    """Its image, as far as claiming it goes."""
    candidate = SimpleNamespace(uid=uid(shard))
    return SimpleNamespace(reason=None, image=SimpleNamespace(candidate=candidate))

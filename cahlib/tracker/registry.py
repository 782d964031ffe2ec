"""The workers that have joined a tracker: their registration, and who is behind a request."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, update

from cahlib.ledger.database import Database, insert_into
from cahlib.tracker import nicknames, worker_names
from cahlib.tracker.models import Worker, WorkerKind
from cahlib.tracker.queries import BY_SECRET, hash_secret, worker_from_row
from cahlib.tracker.schema import workers

#: Seconds after which a worker's last sign of life is written again.
_SEEN_SECONDS = 10
#: Most workers remembered in between.
_MAX_RECOGNIZED = 100_000


class WorkerRegistry:
    """The workers in a database; each is identified by its secret, or UnknownWorker is raised."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        #: by hash of the secret: the worker, and the sign of life that was written last
        self._recognized: dict[bytes, tuple[Worker, float]] = {}

    def register(
        self,
        nickname: str,
        kind: WorkerKind,
        *,
        nickname_secret: str = "",
        team: str = "",
        legacy: bool = False,
    ) -> tuple[Worker, str]:
        """Return a new worker and its secret, of which only a hash is stored.

        ``nickname_secret`` shows that the nickname is its own; raise NicknameTaken if not.
        """
        secret, now = secrets.token_urlsafe(32), self._clock()
        values = {
            "kind": kind.value, "secret": hash_secret(secret), "first_seen": now,
            "last_seen": now, "gone": False, "progress": "", "scraped": 0, "done": 0, "pairs": 0,
        }  # fmt: skip
        with self._database.write() as connection:
            secret_hash = hash_secret(nickname_secret) if nickname_secret else None
            nickname = nicknames.claim_nickname(connection, nickname, secret_hash, legacy=legacy)
            values["nickname"] = nickname
            if team:
                nicknames.join_team(connection, nickname, team)
            while True:
                name = worker_names.draw_worker_name()
                fresh = insert_into(connection, workers).values(name=name, **values)
                free = fresh.on_conflict_do_nothing(index_elements=["name"])
                number = connection.execute(free.returning(workers.c.id)).scalar()
                if number is not None:
                    worker = Worker(id=number, name=name, nickname=nickname, kind=kind)
                    return worker, secret

    def known(self, secret: str) -> Worker:
        """Return the worker with this secret."""
        with self._database.read() as connection:
            return self._recognize(connection, hash_secret(secret))[0]

    def _recognize(self, connection: Connection, key: bytes) -> tuple[Worker, float]:
        """Return the worker whose secret has this hash, and when it was last seen."""
        row = connection.execute(BY_SECRET, {"hash": key}).first()
        return worker_from_row(row), row.last_seen if row else 0.0

    @contextmanager
    def as_worker(
        self, secret: str, progress: str = "", *, lookup: bool = True
    ) -> Iterator[tuple[Connection, Worker]]:
        """Provide a transaction on a worker's behalf, which counts as a sign of life.

        Without ``lookup``, a worker recognized moments ago is not looked up again: for statements
        that check themselves whether it was expelled.
        """
        key, now = hash_secret(secret), self._clock()
        with self._database.write() as connection:
            worker, seen = self._recognized.get(key, (None, 0.0))
            if lookup or worker is None or not 0 <= now - seen <= _SEEN_SECONDS:
                worker, seen = self._recognize(connection, key)
            if progress or now - seen > _SEEN_SECONDS:
                values: dict[str, Any] = {"progress": progress} if progress else {}
                connection.execute(
                    update(workers).where(workers.c.id == worker.id).values(last_seen=now, **values)
                )
                seen = now
            if len(self._recognized) > _MAX_RECOGNIZED:
                self._recognized.clear()
            self._recognized[key] = worker, seen
            yield connection, worker

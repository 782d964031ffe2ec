"""Behind the real PgBouncer, where each transaction may be another session's."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import make_url

from cahlib.ledger.database import Database, DatabaseUnavailable
from cahlib.tracker import admin, backup, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import ShardResult, TrackerRules, WorkerKind
from tests.world.jobs import until
from tests.world.ports import free_port

from .conftest import wats

SETTINGS = """
[databases]
* = host=127.0.0.1 port={inner} user=crowd
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
server_lifetime = 1
"""


@pytest.fixture
def pooled(postgres, tmp_path):
    """A database's address at PgBouncer, which has three sessions for everybody."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed; type: apt-get install pgbouncer")
    url = make_url(postgres.create("pooled"))
    settings, port = tmp_path / "pgbouncer.ini", free_port()
    settings.write_text(SETTINGS.format(inner=url.port, port=port))
    user = ["--user", "postgres"] if os.geteuid() == 0 else []
    tmp_path.chmod(0o755)
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([program, *user, settings], stdout=log, stderr=log)
    try:
        yield url.set(port=port)
    finally:
        process.terminate()
        process.wait()


def answers(url):
    database = Database(url)
    try:
        with database.read() as connection:
            return bool(connection.exec_driver_sql("SELECT 1").scalar())
    except DatabaseUnavailable:
        return False
    finally:
        database.close()


def test_a_tracker_works_behind_a_pool_of_transactions(pooled, tmp_path):
    until(lambda: answers(pooled))
    database = Database(pooled)
    migrate(database)
    admin.add_wats(database, wats(60))
    lease_store = LeaseStore(database, TrackerRules())

    def work(n):
        secret = lease_store.register(f"person{n}", WorkerKind.HYBRID)[1]
        while leases := lease_store.lease_several(secret, 3):
            lease_store.heartbeat(secret, [lease.number for lease in leases])
            for lease in leases:
                uids = (lease.number.to_bytes(16, "big"),)
                assert lease_store.complete(
                    secret, lease.number, ShardResult(pairs=1, uids=uids)
                ).counted

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    counts = statistics.crawl_counts(database)
    assert (counts.done, counts.pairs) == (120, 120)
    assert backup.backup(database, tmp_path / "backup") > 240
    database.close()

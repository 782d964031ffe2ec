"""Jobs run in processes of their own, tell how far they are, and do not get lost with one.

These tests earn their seconds: only real processes can be killed.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import closing

import psutil
import pytest

from cahlib.core import child_process
from cahlib.core.errors import MachineFault, RunError, ShardError
from cahlib.engine import fork_server, local
from tests.world import command, forks, jobs


def take(scrapers, count):
    taken = dict(filter(None, (scrapers.take(timeout=jobs.LIMIT) for _ in range(count))))
    assert len(taken) == count and not scrapers
    return taken


@pytest.fixture(scope="module")
def scrapers():
    with jobs.local_engine(2) as scrapers:
        yield scrapers


def test_results_and_errors_come_back_under_their_keys(scrapers):
    scrapers.submit("five", jobs.double, 5, limit=jobs.LIMIT)
    scrapers.submit("bad", jobs.fail, "no such shard", limit=jobs.LIMIT)
    taken = take(scrapers, 2)
    assert taken["five"] == 10
    assert isinstance(taken["bad"], ShardError) and str(taken["bad"]) == "no such shard"


def test_a_job_that_is_given_again_at_once_is_done_again(scrapers, tmp_path):
    told = [tmp_path / f"{number}" for number in range(20)]
    for path in told:  # as a shard that fails and is leased again
        scrapers.submit("same", jobs.touch_and_fail, path, limit=jobs.LIMIT)
        assert isinstance(take(scrapers, 1)["same"], ShardError)
    assert all(path.exists() for path in told)


def test_what_the_machine_fails_at_is_not_the_jobs_fault(scrapers):
    scrapers.submit("large", jobs.exhaust, limit=jobs.LIMIT)
    error = take(scrapers, 1)["large"]
    assert isinstance(error, MachineFault) and "its memory is exhausted" in str(error)


def test_a_job_whose_worker_is_killed_is_done_by_another(scrapers, tmp_path):
    scrapers.submit("victim", jobs.note_and_wait, tmp_path, limit=jobs.LIMIT)
    pid = jobs.wait_for(tmp_path / "1")
    os.kill(pid, signal.SIGKILL)
    jobs.wait_for(tmp_path / "2")
    (tmp_path / "go").touch()
    assert take(scrapers, 1) == {"victim": "done"}


def test_scrapers_that_are_killed_while_they_start_end_the_run_with_a_sentence(monkeypatch):
    """As the kernel does where memory is short."""
    monkeypatch.setattr(
        fork_server, "_SERVE", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    with jobs.local_engine(1) as scrapers:
        scrapers.submit("five", jobs.double, 5, limit=jobs.LIMIT)
        error = take(scrapers, 1)["five"]
    assert isinstance(error, RunError)
    assert re.search("could not be started .* run the same command again", str(error))


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may wait for it
    except psutil.NoSuchProcess:
        return True


def test_scrapers_go_on_and_end_where_what_they_are_forked_from_is_killed(tmp_path):
    with jobs.local_engine(2) as scrapers:
        scrapers.submit("busy", jobs.note_and_wait, tmp_path, limit=jobs.LIMIT)
        pid = jobs.wait_for(tmp_path / "1")
        scrapers._server._process.kill()
        scrapers.submit("killer", jobs.end, limit=jobs.LIMIT)
        key, error = scrapers.take(timeout=jobs.LIMIT)
        assert key == "killer" and isinstance(error, ShardError)
        scrapers.submit("five", jobs.double, 5, limit=jobs.LIMIT)
        assert scrapers.take(timeout=jobs.LIMIT) == ("five", 10)
    jobs.until(lambda: has_ended(pid))


def test_scrapers_get_a_thread_each_and_no_secret(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("HCLOUD_TOKEN", "hetzner-secret")
    monkeypatch.setattr(child_process, "get_executable", lambda: forks.PYTHON)
    with closing(local.start_server([])) as server, closing(server.fork()) as worker:
        assert worker.recv_bytes() == fork_server.STARTED
        given = psutil.Process(server._process.pid).environ()
    assert given["OMP_NUM_THREADS"] == "1" and "hetzner-secret" not in given.values()


def test_a_job_that_costs_three_workers_is_given_up(scrapers, tmp_path):
    scrapers.submit("killer", jobs.note_and_wait, tmp_path, limit=jobs.LIMIT)
    for start in "123":
        os.kill(jobs.wait_for(tmp_path / start), signal.SIGKILL)
    error = take(scrapers, 1)["killer"]
    assert isinstance(error, ShardError) and "died on it repeatedly" in str(error)


def test_a_running_job_is_heard(scrapers, tmp_path):
    scrapers.submit("teller", jobs.tell_and_wait, tmp_path, limit=jobs.LIMIT)
    jobs.until(lambda: scrapers.reports() == [{"images": 7}])
    (tmp_path / "go").touch()
    take(scrapers, 1)
    assert scrapers.reports() == []


USED = """
import signal, threading
from tests.world import jobs

heard = threading.Event()
signal.signal(signal.SIGINT, lambda *_: heard.set())
with jobs.local_engine(1) as scrapers:
    scrapers.submit("five", jobs.double, 5, limit=jobs.LIMIT)
    while not (taken := scrapers.take(timeout=1)):
        pass
    print(taken, heard.is_set())
"""


def test_ctrl_c_is_for_the_run_also_while_the_scrapers_start():
    with subprocess.Popen(
        [sys.executable, "-c", USED],
        env=command.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        main = psutil.Process(running.pid)

        def starting():
            return any("fork_server" in " ".join(each.cmdline()) for each in main.children())

        jobs.until(lambda: running.poll() is not None or starting())
        command.press_ctrl_c(running)
        assert running.communicate() == ("('five', 10) True\n", "")

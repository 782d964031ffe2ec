"""A tracker says how it is, and what is wrong with a database, in a sentence."""

import os
import sqlite3
import subprocess
import threading
import time

import pytest

from cahlib.commands.cli import main
from cahlib.demo.web import Answer, Web
from cahlib.ledger.client import TrackerClient, TrackerUnavailable, WorkerOptions
from cahlib.ledger.database import Database
from cahlib.ledger.local import LocalLedger
from cahlib.ledger.remote import RemoteLedger
from cahlib.tracker.app import create_app
from cahlib.tracker.migrate import migrate
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.jobs import until
from tests.world.trackers import ask, serving

from .conftest import wats

ANY = RequestLimits(address=0, worker=0, newcomers=0)


def test_head_is_answered_where_get_is(url, database):
    with serving(create_app(TrackerSettings(database=url, limits=ANY))) as tracker:
        for path in ("/", "/healthz", "/readyz", "/v1/state"):
            answer = ask(tracker, path, method="HEAD")
            assert (answer.status, answer.text) == (200, "")
            assert int(answer.headers["content-length"]) > 0
        assert ask(tracker, "/v1/lease", method="HEAD").status == 405


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_told_to_operators_and_workers(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path]).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        url = f"sqlite:///{tmp_path / 'tracker.sqlite'}"
        database = Database(url)
        migrate(database)
        with serving(create_app(TrackerSettings(database=url, limits=ANY, fresh=0))) as tracker:
            ann = TrackerClient(tracker)
            ann.join("ann", "hybrid")
            with open(tmp_path / "other", "wb", buffering=0) as other, pytest.raises(OSError):
                while other.write(bytes(4096)):
                    pass
            answer = None

            def full():
                nonlocal answer
                answer = ask(tracker, "/healthz")
                return answer.status == 503

            until(full)
            assert "No space is left for" in answer.text
            with pytest.raises(TrackerUnavailable, match="No space is left"):
                while True:
                    ann.heartbeat([], "x" * 200)
            assert ask(tracker, "/readyz").status == 200
            (tmp_path / "other").unlink()
            until(lambda: ask(tracker, "/healthz").status == 200)
        database.close()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_join_outlives_a_database_that_is_away(postgres, tmp_path, caplog):
    url = postgres.create("joining")
    migrated(url)
    with serving(create_app(TrackerSettings(database=url, limits=ANY))) as address:
        postgres.stop()
        try:
            ledger = LocalLedger(tmp_path / "ledger.sqlite")
            tracker = TrackerClient(address, sleep=lambda _: time.sleep(0.05))
            path = tmp_path / "run" / "tracker.json"
            path.parent.mkdir()
            shared = RemoteLedger(
                ledger, tracker, path, WorkerOptions(nickname="ann", kind="hybrid")
            )
            joining = threading.Thread(target=shared.__enter__)
            joining.start()
            until(lambda: "Retrying." in caplog.text)
        finally:
            postgres.start()
        joining.join()
        assert tracker.secret
        shared.__exit__()
        ledger.close()


def test_a_join_outlives_a_restart_behind_a_proxy():
    joined = Answer(body=b'{"name": "brave-otter-1", "secret": "s", "upload": ""}')
    away = [Answer(status=status, body=b"<html>Bad Gateway") for status in (502, 503, 504)]
    waited = []
    with Web({"/v1/workers": [*away, joined], "/other/v1/workers": Answer(status=500)}) as web:
        tracker = TrackerClient(f"http://{web.address}", sleep=waited.append)
        assert (
            tracker.wait_while_unavailable(lambda: tracker.join("ann", "hybrid"))["secret"] == "s"
        )
        assert len(waited) == 3
        other = TrackerClient(f"http://{web.address}/other", sleep=waited.append)
        with pytest.raises(TrackerUnavailable, match="answers 500"):
            other.wait_while_unavailable(lambda: other.join("ann", "hybrid"))


def run(capsys, *line):
    code = main(["tracker", *line])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("command", [["stats"], ["serve"], ["retry"], ["export", "shards"]])
def test_a_misspelt_database_is_not_begun(tmp_path, capsys, command):
    path = tmp_path / "trakcer.sqlite"
    code, said = run(capsys, *command, "--database", f"sqlite:///{path}")
    assert code == 2 and "has no tracker" in said and not path.exists()


def test_an_empty_database_is_begun_by_add_alone(postgres, tmp_path, capsys):
    url = postgres.create("empty")
    assert "has no tracker" in run(capsys, "stats", "--database", url)[1]
    for name in "ab":
        (tmp_path / f"{name}.warc.wat.gz").write_bytes(b"x")
    crawl = ["--crawl", str(tmp_path / "*.wat.gz")]
    assert run(capsys, "add", "--database", url, *crawl)[1] == ""
    assert run(capsys, "stats", "--database", url)[0] == 0


def migrated(url):
    database = Database(url)
    migrate(database)
    database.close()


def foreign(path):
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE cats (name TEXT)")


def ledger_of_a_run(path):
    ledger = LocalLedger(path)
    ledger.add(wats(1))
    ledger.close()


def newer(path):
    migrated(f"sqlite:///{path}")
    with sqlite3.connect(path) as file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (foreign, "has tables of another program (cats)"),
        (ledger_of_a_run, "has tables of another program (pairs, shards)"),
        (newer, "is from a newer version of cahlib"),
    ],
)
def test_a_database_that_is_not_ours_is_left_as_it_is(tmp_path, capsys, make, says):
    path = tmp_path / "tracker.sqlite"
    make(path)
    before = path.read_bytes()
    (tmp_path / "a.warc.wat.gz").write_bytes(b"x")
    for line in (["stats"], ["add", "--crawl", str(tmp_path / "a.warc.wat.gz")]):
        code, said = run(capsys, *line, "--database", f"sqlite:///{path}")
        assert code == 2 and says in said and said.count("\n") == 1
    with sqlite3.connect(path) as file:
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
    assert before[:16] == path.read_bytes()[:16]
    assert make is newer or "workers" not in tables


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_none_is_said_so(tmp_path, capsys, port):
    url = f"sqlite:///{tmp_path / 'tracker.sqlite'}"
    migrated(url)
    code, said = run(capsys, "serve", "--database", url, f"--port={port}")
    assert code == 2 and "is not a port" in said


@pytest.mark.parametrize("port", ["abc", "99999"])
def test_a_database_at_a_port_that_is_none_is_said_so(capsys, port):
    code, said = run(capsys, "stats", "--database", f"postgresql+psycopg://a@127.0.0.1:{port}/x")
    assert code == 2 and said.count("\n") == 1 and "database" in said

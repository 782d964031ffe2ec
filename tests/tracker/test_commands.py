"""`cah tracker` as people type it, and what it says to wrong input."""

import csv
import http.client
import io
import json
import socket
import time
from statistics import quantiles

import pytest

from cahlib.commands.cli import main
from cahlib.core.records import Stats
from cahlib.ledger.database import Database
from cahlib.tracker import statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import ShardResult, TrackerRules, WorkerKind
from tests.world.command import json_keys
from tests.world.jobs import LIMIT
from tests.world.trackers import commanded


@pytest.fixture
def crawl(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.warc.wat.gz").write_bytes(b"x")
    return str(tmp_path / "*.wat.gz")


def test_a_crawl_is_added_once_counted_and_exported(url, crawl, capsys, tmp_path):
    assert main(["tracker", "add", "--database", url, "--crawl", crawl, "--wats", "2"]) == 0
    assert "Added 2 WAT files: 4 shards." in capsys.readouterr().out
    assert main(["tracker", "add", "--database", url, "--crawl", crawl]) == 0
    assert "Added 1 WAT files: 2 shards." in capsys.readouterr().out
    database = Database(url)
    lease_store = LeaseStore(database, TrackerRules())
    secret = lease_store.register("=1+1", WorkerKind.HYBRID)[1]
    lease_store.complete(secret, lease_store.lease(secret).number, ShardResult(pairs=12))
    lease_store.fail(secret, lease_store.lease(secret).number, "broken")
    database.close()
    assert main(["tracker", "stats", "--database", url]) == 0
    said = capsys.readouterr().out
    assert "1 of 6 shards are done (16.67%)" in said and "12 pairs" in said

    assert main(["tracker", "export", "leaderboard", "--database", url]) == 0
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == [
        {"nickname": "'=1+1", "scraped": "0", "done": "1", "pairs": "12", "verified": "False"}
    ]
    out = tmp_path / "shards.json"
    command = ["tracker", "export", "shards", "--form", "json", "--output", str(out)]
    assert main([*command, "--database", url]) == 0
    rows = json.loads(out.read_text())
    assert [row["state"] for row in rows] == ["done", *["todo"] * 5]
    assert main(["tracker", "retry", "--database", url]) == 0


def test_who_lied_is_sent_away_and_what_he_did_is_to_do_again(url, crawl, capsys):
    main(["tracker", "add", "--database", url, "--crawl", crawl])
    database = Database(url)
    lease_store = LeaseStore(database, TrackerRules())
    (ann, hers), (eve, his) = (
        lease_store.register(name, WorkerKind.HYBRID) for name in ("ann", "eve")
    )
    (carl, cpu), gpu = (
        lease_store.register("eve", WorkerKind.CPU),
        lease_store.register("gus", WorkerKind.GPU)[1],
    )
    uids = [f"{n:032x}" for n in range(4)]
    for secret, mine in ((hers, uids[:1]), (his, uids[1:2]), (his, uids[2:])):
        number = lease_store.lease(secret).number
        keys = tuple(map(bytes.fromhex, mine))
        result = ShardResult(pairs=len(keys), uids=keys, stats=Stats(), output="s3://x")
        lease_store.complete(secret, number, result)
    for _ in range(2):
        parcel = {"url": "s3://p/a.tar", "sha256": "0" * 64, "size": 5}
        lease_store.deliver(cpu, lease_store.lease(cpu).number, parcel)
    lease_store.complete(
        gpu, lease_store.lease(gpu).number, ShardResult(pairs=7)
    )  # judged by an honest one: stays
    lease_store.lease(gpu)
    held = lease_store.lease(his).number
    assert main(["tracker", "expel", eve.name, "no-body", "--database", url]) == 1
    assert "There is no worker or nickname no-body." in capsys.readouterr().err
    assert lease_store.held_shards(his) == [held]
    assert main(["tracker", "expel", eve.name, "--database", url]) == 0
    assert "1 workers were expelled; 0 shards will be done again." in capsys.readouterr().out
    assert statistics.crawl_counts(database).done == 4
    for again in (3, 0):
        line = ["tracker", "expel", eve.name, carl.name, "--undo", "--database", url]
        assert main([*line, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["shards"] == again and sorted(told) == json_keys("tracker expel")
    counts = statistics.crawl_counts(database)
    assert (counts.done, counts.pairs, counts.parcels, counts.todo) == (2, 8, 1, 4)
    assert [one["nickname"] for one in statistics.list_leaders(database)] == ["gus", "ann"]
    free = [row for row in statistics.export_shards(database) if row["state"] == "todo"]
    assert {(row["worker"], row["output"], row["tally"]) for row in free} == {(None, None, None)}
    number = lease_store.lease(hers).number
    assert lease_store.claimed_pairs(hers, number, uids) == uids[:1]
    database.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stats", "--database", "nonsense"], "not a database URL"),
        (["stats", "--database", "mysql://x/y"], "mysql is not supported"),
        (["stats", "--database", "sqlite://"], "needs a file"),
        (
            ["add", "--crawl", "nowhere.wat.gz", "--database", "sqlite:///t.sqlite"],
            "is neither a file nor the name of a crawl",
        ),
        (["add", "--crawl", "x", "--wats", "-1", "--database", "sqlite:///t.sqlite"], "wats"),
        (["serve", "--processes", "2", "--database", "sqlite:///t.sqlite"], "need PostgreSQL"),
        (["serve", "--most-pairs", "0", "--database", "sqlite:///t.sqlite"], "most_pairs"),
        (["serve", "--filters", "/nowhere", "--database", "sqlite:///t.sqlite"], "no folder"),
        (["filter", "/nowhere/a.bloom"], "cannot be written"),
        (["filter", "a.bloom", "--error", "2"], "between 0 and 1"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tracker", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_port_that_is_taken_is_said_so(database, url, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = ["tracker", "serve", "--database", url, "--port", port]
        assert main(line) == 2
    said = capsys.readouterr().err
    assert "cannot listen on" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql+psycopg://ann:secret@127.0.0.1:9/x", "refused"),
        ("sqlite:////proc", "unable to open database file"),
    ],
)
def test_why_a_database_cannot_be_reached_is_said(capsys, url, says):
    assert main(["tracker", "stats", "--database", url]) == 1
    said = capsys.readouterr().err
    assert "cannot be reached" in said and says in said and said.count("\n") == 1
    assert "secret" not in said


def test_a_database_that_does_not_exist_is_said_so(postgres, capsys):
    url = postgres.create("there").replace("/there", "/nowhere")
    assert main(["tracker", "stats", "--database", url]) == 1
    assert '"nowhere" does not exist' in capsys.readouterr().err


def test_a_tracker_that_is_none_is_said_so_before_anything_starts(tmp_path, capsys):
    options = ["--nickname", "ann", "--contact", "ann@example.org"]
    options += ["--output", str(tmp_path / "out")]
    assert main(["worker", "--tracker", "http://127.0.0.1:9", *options]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert main(["gpu", *options]) == 2
    assert "give the URL of the tracker" in capsys.readouterr().err
    assert main(["run", "--tracker", "nowhere", *options]) == 2
    assert "is not an http(s) URL" in capsys.readouterr().err


def test_several_server_processes_answer_without_waiting_for_acknowledgements(postgres):
    url = postgres.create("several")
    database = Database(url)
    migrate(database)
    database.close()
    with commanded(url, "--processes", "2") as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        taken = []
        for _ in range(60):  # the first dozen are acknowledged at once anyway
            started = time.monotonic()
            connection.request("GET", "/v1/state")
            assert connection.getresponse().read()
            taken.append(time.monotonic() - started)
        connection.close()
    # else a packet waits 40 ms for the last one's receipt; a busy machine makes some slow, not most
    assert quantiles(taken)[0] < 0.03, taken

"""For scripts: results on stdout, all else on stderr, one JSON object, nothing more when quiet."""

import io
import json
import re

import pytest

from cahlib.commands import console
from cahlib.core import terminal
from cahlib.core.progress import Snapshot, Transient
from cahlib.core.records import Stats
from cahlib.guide import read_page
from tests.world import cloud as clouds
from tests.world import judged, small
from tests.world.command import said

DATABASE = "--database", "sqlite:///tracker.sqlite"
#: Every command that prints JSON, by its words: its arguments, and its exit code.
JSON = {
    "inspect": (["dataset"], 0),
    "verify": (["dataset"], 1),
    "dedup": (["dataset", "--distance", "8"], 0),
    "select": (["dataset", "--where", "similarity > 0.4"], 0),
    "why": (["dataset", "example.com"], 0),
    "swarm list": ([], 0),
    "swarm status": (["--output", "dataset"], 0),
    "tracker stats": (DATABASE, 0),
}
#: Others that read, and have notes for people.
READING = {
    "blocklist build": (["dataset", "--output", "list"], 0),
    "blocklist show": (["domains"], 0),
    "repair": (["dataset", "--dry-run"], 0),
    "guide": ([], 0),
}
#: Those whose notes are none of their results.
NOTED = {"select", "verify", "blocklist build", "blocklist show", "repair", "guide"}


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch, capsys):
    """A dataset with a shard that has lost a file, a tracker, and a cloud without servers."""
    monkeypatch.chdir(tmp_path)
    judged.write(tmp_path / "dataset")
    (tmp_path / "dataset/img_emb/img_emb_s-0.npy").unlink()
    (tmp_path / "dataset/run/swarm").mkdir(parents=True)
    (tmp_path / "dataset/run/swarm/run").write_text("1a2b3c4d")
    (tmp_path / "domains").write_text("example.com\n")
    (tmp_path / "a.warc.wat.gz").write_bytes(small.file(0, 1))
    assert said(capsys, "tracker", "add", "--crawl", "a.warc.wat.gz", *DATABASE).returncode == 0
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        monkeypatch.setenv("HCLOUD_TOKEN", "token")
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        yield


def documented(command):
    """The keys of a command's object, as the guide names them."""
    [row] = re.findall(rf"^\| `cah {command}` \| (.*) \|$", read_page("formats"), re.MULTILINE)
    return re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))


@pytest.mark.parametrize("command", JSON)
def test_json_is_one_object_with_the_keys_that_the_guide_names(capsys, command):
    arguments, code = JSON[command]
    ran = said(capsys, *command.split(), *arguments, "--json", "--quiet")
    assert (ran.returncode, ran.stderr) == (code, "")
    assert sorted(json.loads(ran.stdout)) == sorted(documented(command))


def test_json_tells_what_the_text_tells(capsys):
    found = json.loads(said(capsys, "verify", "dataset", "--json").stdout)
    told = said(capsys, "verify", "dataset").stdout.splitlines()
    assert not found["sound"] and [each["problem"] for each in found["problems"]] == told[:-1]
    found = json.loads(said(capsys, "inspect", "dataset", "--json").stdout)
    assert f"{found['pairs']} pairs in 1 shard" in said(capsys, "inspect", "dataset").stdout
    for stage in found["stages"].values():
        assert stage["entered"] == stage["left"] + sum(stage["dropped"].values())


@pytest.mark.parametrize("command", JSON | READING)
def test_quiet_leaves_the_result_and_nothing_else(capsys, command):
    arguments, code = (JSON | READING)[command]
    full = said(capsys, *command.split(), *arguments)
    quiet = said(capsys, *command.split(), *arguments, "--quiet")
    assert full.returncode == quiet.returncode == code
    assert (quiet.stdout, quiet.stderr) == (full.stdout, "")
    assert bool(full.stderr) == (command in NOTED)


def test_quiet_never_hides_a_mistake_or_a_warning(capsys):
    ran = said(capsys, "inspect", "nowhere", "--json", "--quiet")
    assert (ran.returncode, ran.stdout) == (2, "") and ran.stderr.startswith("cah: nowhere holds")
    with terminal.quiet_output(True):
        terminal.print_note("a note")
        console.print_message(Transient("node 1: boot"))
        console.print_message("cah: The ledger is made anew.")
    terminal.print_note("after it")
    assert capsys.readouterr().err == "cah: The ledger is made anew.\nafter it\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO, "xterm"), (Terminal, "dumb")])
def test_lines_are_drawn_only_where_they_can_be_drawn_anew(monkeypatch, stream, term):
    monkeypatch.setenv("TERM", term)
    now = Snapshot(
        elapsed=1, shards=2, done=1, failed=0, stats=Stats(), queues={}, busy=0, finished=True,
        rates=dict.fromkeys(("links", "images", "judged", "pairs"), 0.0),
    )  # fmt: skip
    with console.progress_view(shown := stream()) as listener:
        listener(now)
    assert shown.getvalue().startswith("1 s, shards 1/2;") and shown.getvalue().count("\n") == 1
    assert not {"\r", "\x1b"} & {*shown.getvalue()}
    with terminal.quiet_output(True), console.progress_view(shown := stream()) as listener:
        listener(now)
    assert shown.getvalue() == ""

"""For scripts: results on stdout, all else on stderr, one JSON object, nothing more when quiet."""

import io
import json
import shlex
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from cahlib.commands import console
from cahlib.commands.cli import _parser, main
from cahlib.core import terminal
from cahlib.core.progress import Snapshot, Transient
from cahlib.core.records import Stats
from tests.world import cloud as clouds
from tests.world import judged, small
from tests.world.command import json_keys, said

DATABASE = "--database", "sqlite:///tracker.sqlite"
#: Every command that reads and prints JSON, by its words: its arguments, and its exit code.
READING = {
    "inspect": (["dataset"], 0),
    "verify": (["dataset"], 1),
    "repair": (["dataset", "--dry-run"], 0),
    "dedup": (["dataset", "--distance", "8"], 0),
    "select": (["dataset", "--where", "similarity > 0.4"], 0),
    "why": (["dataset", "example.com"], 0),
    "blocklist build": (["dataset", "--output", "list"], 0),
    "blocklist show": (["domains"], 0),
    "swarm list": ([], 0),
    "swarm status": (["--output", "dataset"], 0),
    "tracker stats": (DATABASE, 0),
    "tracker checks": (DATABASE, 0),
}
#: The same of those that change something.
CHANGING = {
    "purge": (["whole", "--urls", "urls"], 0),
    "score": (["whole", "--head", "taste.json"], 0),
    "run": (shlex.split("--links links.txt --text-column none --no-judge --output made"), 0),
    "swarm down": (["--output", "dataset"], 0),
    "tracker add": (["--crawl", "b.warc.wat.gz", *DATABASE], 0),
    "tracker retry": (DATABASE, 0),
    "tracker backup": (["another", *DATABASE], 0),
    "tracker restore": (["backup", "--database", "sqlite:///restored.sqlite"], 0),
}
#: Those whose keys are compared where they run anyway.
ELSEWHERE = {
    "retry": "run/test_retry.py",
    "worker": "acceptance/test_extras.py",
    "gpu": "acceptance/test_extras.py",
    "swarm up": "acceptance/test_swarm.py",
    "demo": "acceptance/test_demo.py",
    "tracker expel": "tracker/test_commands.py",
}
#: Text, tables or a server, for which an object would be nothing but quotation marks.
TEXT = {
    "guide", "completion", "browse", "tracker serve", "tracker export", "tracker filter",
    "swarm logs", "swarm ssh", "swarm restart",
}  # fmt: skip
#: Those whose notes are none of their results.
NOTED = {"select", "verify", "blocklist build", "blocklist show", "repair", "guide"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset with a shard that has lost a file, a whole one, a tracker, and lists."""
    folder = tmp_path_factory.mktemp("made")
    judged.write(folder / "dataset")
    (folder / "dataset/img_emb/img_emb_s-0.npy").unlink()
    (folder / "dataset/run/swarm").mkdir(parents=True)
    (folder / "dataset/run/swarm/run").write_text("1a2b3c4d")
    judged.write(folder / "whole")
    (folder / "domains").write_text("example.com\n")
    (folder / "urls").write_text("https://host4.example/4.jpg?a=1&b=2\n")
    (folder / "links.txt").write_text("http://host.example/a.jpg\nhttp://host.example/b.png\n")
    card = {"name": "taste", "backbone": judged.SPEC.model, "width": 32, "kind": "linear"}
    (folder / "taste.json").write_text(json.dumps(card))
    weights = {"0.weight": np.ones((1, 32), np.float32), "0.bias": np.ones(1, np.float32)}
    save_file(weights, folder / "taste.safetensors")
    for number, name in enumerate("ab"):
        (folder / f"{name}.warc.wat.gz").write_bytes(small.file(number, 1))
    database = "--database", f"sqlite:///{folder}/tracker.sqlite"
    assert main(["tracker", "add", "--crawl", str(folder / "a.warc.wat.gz"), *database]) == 0
    assert main(["tracker", "backup", str(folder / "backup"), *database]) == 0
    return folder


@pytest.fixture(scope="module")
def cloud():
    """A cloud without servers."""
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        yield cloud


@pytest.fixture(autouse=True)
def world(made, cloud, tmp_path, monkeypatch):
    """The files that commands are given, in the folder where they work."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HCLOUD_TOKEN", "token")
    monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)


@pytest.fixture
def scraping(monkeypatch, web):
    """Scraping in this process, from a web of pictures."""

    def here(job, *, stop, swarm_status, **_):
        return small.scraping(job, stop=stop, swarm_status=swarm_status)

    monkeypatch.setattr("cahlib.run.scrapers.open_scrapers", here)
    monkeypatch.setenv("CAH_REPLAY", web.address)
    monkeypatch.setenv("CAH_CONTACT", "tests@example.org")


def test_every_command_prints_json_unless_its_result_is_text():
    known = {path.removeprefix("cah "): each for path, each in _parser().commands()}
    groups = {path.partition(" ")[0] for path in known if " " in path}
    offered = {p for p, each in known.items() if "--json" in each._option_string_actions}
    assert offered == {*READING, *CHANGING, *ELSEWHERE}
    assert known.keys() - groups == offered | TEXT and not offered & TEXT


@pytest.mark.parametrize("command", READING)
def test_json_is_one_object_with_the_keys_that_the_guide_names(capsys, command):
    arguments, code = READING[command]
    ran = said(capsys, *command.split(), *arguments, "--json", "--quiet")
    assert (ran.returncode, ran.stderr) == (code, "")
    assert sorted(json.loads(ran.stdout)) == json_keys(command)


@pytest.mark.parametrize("command", CHANGING)
def test_so_is_that_of_a_command_that_changes_something(capsys, scraping, command):
    arguments, code = CHANGING[command]
    ran = said(capsys, *command.split(), *arguments, "--json", "--quiet")
    assert (ran.returncode, ran.stderr) == (code, "")
    assert sorted(json.loads(ran.stdout)) == json_keys(command)


def test_json_tells_what_the_text_tells(capsys):
    found = json.loads(said(capsys, "verify", "dataset", "--json").stdout)
    told = said(capsys, "verify", "dataset").stdout.splitlines()
    assert not found["sound"] and [each["problem"] for each in found["problems"]] == told[:-1]
    found = json.loads(said(capsys, "inspect", "dataset", "--json").stdout)
    assert f"{found['pairs']} pairs in 1 shard" in said(capsys, "inspect", "dataset").stdout
    for stage in found["stages"].values():
        assert stage["entered"] == stage["left"] + sum(stage["dropped"].values())


@pytest.mark.parametrize("command", [*READING, "guide"])
def test_quiet_leaves_the_result_and_nothing_else(capsys, command):
    arguments, code = READING.get(command, ([], 0))
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

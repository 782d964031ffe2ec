"""A mistake gets one sentence that says what to do, and nothing is left half-written."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cahlib import demo
from cahlib.core.config import Job
from cahlib.core.errors import RunError
from cahlib.dataset.maintain.verify import verify
from cahlib.demo.web import Answer, Web
from cahlib.ledger.local import LocalLedger
from cahlib.parcel import parcel as parcels
from cahlib.run.pipeline import run
from tests.world import command, judged, small

MODEL = ["--model", str(demo.MODEL), "--threshold", "0.3"]


def refused(ran: subprocess.CompletedProcess[str], *, code: int, sentence: str) -> None:
    assert (ran.returncode, sentence in ran.stderr) == (code, True), ran.stderr
    assert "Traceback" not in ran.stderr
    complaints = [line for line in ran.stderr.splitlines() if line.startswith("cah: ")]
    assert 1 <= len(complaints) <= 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("run --hous 2", "run has no option --hous; did you mean --hours? `cah run --help-all`"),
        ("verify --jsn set", "verify has no option --jsn; did you mean --json? `cah "),
        ("run --max-cost", "argument --max-cost: expected one argument; `cah run --help-all`"),
        ("run now", "run does not take 'now'"),
        ("swarm", "swarm needs a command (up, down, list, status, logs, ssh, restart);"),
        ("swarm stats", "swarm has no command stats; did you mean `cah swarm status`?"),
        ("inspekt", "cah has no command inspekt; did you mean `cah inspect`? `cah --help` lists"),
        ("expel", "cah has no command expel; did you mean `cah tracker expel`?"),
        ("swarm up many", "argument N: invalid int value: 'many'; `cah swarm up --help-all`"),
        ("swarm ssh", "swarm ssh needs NODE; for example: `cah swarm ssh cah-"),
        ("blocklist", "blocklist needs a command (build, show)"),
        (
            "tracker export leaders",
            "what: 'leaders' is not one of leaderboard, shards; did you mean",
        ),
    ],
)
def test_a_command_that_is_none_gets_a_line(capsys, line, sentence):
    ran = command.said(capsys, *line.split())
    refused(ran, code=2, sentence=sentence)
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--shards", "ten"], 2, "shards: 'ten' is not a whole number"),
        (["--shards", "9" * 20], 2, "shards: 1e+20 is not allowed"),
        (["--connections", "9" * 400], 2, "connections: that number is not allowed"),
        (["--hours", "9" * 400], 2, "hours: inf is not a number"),
        (["--tracker", "http://["], 2, "tracker: http://[ is not an http(s) URL"),
        (["--engine", "tls://"], 2, "engine: tls:// is not an address"),
        (["--engine", "tcp://127.0.0.1:x"], 2, "engine: tcp://127.0.0.1:x is not an address"),
        (["--engine", "foo://a:1"], 2, "engine: foo://a:1 is not an address"),
        (["--preset", "best"], 2, "preset: 'best' is not known; choose from laion400m"),
        ([], 2, "crawl: say what to read"),
        (["--crawl", "a.wat.gz", "--contact", ""], 2, "contact: give a web page or an e-mail"),
        (["--contact", ""], 2, "For example: cah run --crawl CC-MAIN-2024-10 "),
        (["--crawl", "nothing.wat.gz"], 2, "nothing.wat.gz is neither a file"),
        (["--crawl", "a.wat.gz", "--model", "ViT-Z-99", "--threshold", "0.3"], 2, "ViT-Z-99"),
        (
            ["--crawl", "a.wat.gz", "--model", "laion/CLIP-ViT-B-32", "--threshold", "0.3"],
            2,
            "write hf-hub:laion/CLIP-ViT-B-32, and leave pretrained empty",
        ),
        (["--crawl", "a.wat.gz", "--model", "no/folder", "--threshold", "0.3"], 2, "no/folder"),
        (["--crawl", "a.wat.gz", "--model", "~no/folder", "--threshold", "0.3"], 2, "~no/folder"),
        (["--crawl", "a.wat.gz", *MODEL, "--output", "/proc/x"], 2, "cannot be written"),
        (["--crawl", "a.wat.gz", *MODEL, "--output", "nope://x/y"], 2, "nope"),
        (["--crawl", "a.wat.gz", *MODEL, "--replay", "somewhere"], 2, "replay"),
        (["--crawl", "a.wat.gz", *MODEL, "--blocked-pairs", "none"], 2, "none"),
        (
            ["--languages", "en,english", "--crawl", "a.wat.gz", *MODEL],
            2,
            "languages: 'english' is",
        ),
        (
            ["--languages", "", "--crawl", "a.wat.gz", *MODEL],
            2,
            "languages: name the languages to keep",
        ),
        (["--crawl", "a.wat.gz", *MODEL, "--output", "mine"], 2, "another README.md"),
        (["--crawl", "empty.wat.gz", *MODEL], 2, "is empty"),
        (["--crawl", "page.wat.gz", *MODEL], 2, "is a web page, not a WAT file"),
        (["--crawl", "plain.wat.gz", *MODEL], 2, "is not compressed"),
        (["--crawl", "pages.warc.gz", *MODEL], 2, "is a WARC file, not a WAT file"),
        (["--links", "no/*.csv", "a.csv", *MODEL], 2, "links: no/*.csv matches no file"),
        (["--links", "page.wat.gz", "--no-judge"], 2, "it has no column of links (<!doctype html>"),
        (["--links", "empty.wat.gz", *MODEL], 2, "cannot be read as a table: it is empty"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_gets_a_sentence(tmp_path, monkeypatch, capsys, arguments, code, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAH_CONTACT", "tests@example.org")
    (tmp_path / "a.wat.gz").write_bytes(bytes.fromhex("1f8b0800"))
    for name in ("run", "shards"):  # a project's folders may be named as a dataset's are
        (tmp_path / "mine" / name).mkdir(parents=True)
    (tmp_path / "mine" / "README.md").write_text("My thesis")
    (tmp_path / "empty.wat.gz").touch()
    (tmp_path / "page.wat.gz").write_text("<!doctype html><title>Not found</title>")
    (tmp_path / "pages.warc.gz").write_bytes(
        gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\n\r\n")
    )
    (tmp_path / "plain.wat.gz").write_text("WARC/1.0\r\nWARC-Type: warcinfo\r\n\r\n")
    refused(command.said(capsys, "run", *arguments), code=code, sentence=sentence)


@pytest.mark.parametrize("made", ["a file", "a dangling link", "a loop of links"])
@pytest.mark.parametrize("name", ["shards", "images", "metadata", "run", "run/parcels", ".", "out"])
def test_what_is_in_the_way_is_named(tmp_path, monkeypatch, capsys, name, made):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wat.gz").write_bytes(small.file(0, links=1))
    if name == "out":  # the folder's folder
        output, name = tmp_path / "out" / "set", ".."
    else:
        output = tmp_path / "set"
    path = Path(os.path.normpath(output / name))
    path.parent.mkdir(parents=True, exist_ok=True)
    if made == "a file":
        path.touch()
    else:
        path.symlink_to(path if made == "a loop of links" else tmp_path / "nothing")
    line = ["run", "--crawl", "a.wat.gz", "--contact", "a@b.org", *MODEL, "--output", output]
    if name == "." and made == "a dangling link":
        return  # what it points to can be made
    refused(command.said(capsys, *line), code=2, sentence=f"output: {output}")


def test_a_name_that_is_too_long_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wat.gz").write_bytes(small.file(0, links=1))
    line = ["run", "--crawl", "a.wat.gz", "--contact", "a@b.org", *MODEL, "--output", "x" * 300]
    refused(command.said(capsys, *line), code=2, sentence="File name too long")


def test_a_job_that_came_to_nothing_holds_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def no_engine(*arguments, **options):
        raise RunError("No engine.")

    for name in "ab":
        Path(f"{name}.wat.gz").write_bytes(bytes.fromhex("1f8b0800"))
        values = {"crawl": f"{name}.wat.gz", "contact": "tests@example.org"}
        job = Job.from_values({**values, "model": str(demo.MODEL), "threshold": "0.3"})
        with pytest.raises(RunError, match=r"No engine\."):
            run(job, scraping=no_engine)
    ledger = LocalLedger(tmp_path / "dataset/run/ledger.sqlite")
    assert {shard.url[-8:] for shard in ledger.in_state("todo")} == {"b.wat.gz"}
    ledger.close()


@pytest.mark.parametrize(
    ("left", "name", "value"),
    [
        ("shards", "threshold", "0.9"),
        ("run/parcels", "languages", "de"),
        ("run/ledger.sqlite", "threshold", "0.9"),
    ],
)
def test_what_was_done_is_never_given_to_another_job(
    tmp_path, monkeypatch, capsys, left, name, value
):
    """A manifest, a parcel, or the ledger alone: a dataset may have been moved or damaged."""
    monkeypatch.chdir(tmp_path)
    job = begun(left)
    folder = job.output.folder
    before = (folder / left).stat().st_ino
    line = ["run", "--crawl", "a.wat.gz", "--contact", "tests@example.org", f"--{name}", value]
    refused(command.said(capsys, *line), code=2, sentence=f"or use the same settings: {name} ")
    assert (folder / left).stat().st_ino == before
    assert Job.stored(folder / "run/job.json") == job


def test_what_was_scraped_before_a_model_failed_to_load_serves_another(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = begun("run/parcels").output.folder
    parcel = list((folder / "run/parcels").iterdir())
    line = ["run", "--crawl", "a.wat.gz", "--contact", "tests@example.org", "--model", "ViT-B-32"]
    line += ["--pretrained", "mine", "--threshold", "0.3", "--forms", "embeddings"]
    refused(command.said(capsys, *line), code=2, sentence="ViT-B-32 has no weights called 'mine'")
    assert Job.stored(folder / "run/job.json").judge.pretrained == "mine"
    assert {*parcel} <= {*(folder / "run/parcels").iterdir()}


def test_a_mistyped_model_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.wat.gz").write_bytes(bytes.fromhex("1f8b0800"))
    line = ["run", "--crawl", "a.wat.gz", "--contact", "tests@example.org", "--model", "ViT-B"]
    refused(
        command.said(capsys, *line, "--threshold", "0.3"),
        code=2,
        sentence="'ViT-B' is neither a folder nor",
    )
    assert not Path("dataset").exists()


def begun(left: str) -> Job:
    """A job that has done something, of which this is left: all else is outside its folder."""
    Path("a.wat.gz").write_bytes(bytes.fromhex("1f8b0800"))
    job = Job.from_values({"crawl": "a.wat.gz", "contact": "tests@example.org"})
    judged.finish(job)
    folder = job.output.folder
    parcel = judged.parcel("s-0", images=0)
    parcels.write_parcel([], parcel.shard, folder / "run/parcels", stats=parcel.stats)
    for each in {"shards", "run/parcels", "run/ledger.sqlite"} - {left}:
        (folder / each).rename(Path(each).name)
    return job


def test_an_unknown_command_or_option_is_the_users_mistake():
    assert command.cah("fly").returncode == command.cah("run", "--colour", "red").returncode == 2


def test_help_is_given_where_only_plain_letters_can_be_shown():
    line = [sys.executable, "-m", "cahlib.commands.cli", "run", "--help"]
    environment = command.environment() | {"PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and "--max-cost N" in ran.stdout


def test_a_folder_that_holds_no_dataset_is_named(tmp_path, capsys):
    for act in ("inspect", "verify"):
        refused(command.said(capsys, act, tmp_path), code=2, sentence="holds no dataset")


def test_settings_in_no_text_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("CAH_NICKNAME=Ägidius".encode("latin-1"))
    refused(command.said(capsys, "verify", "."), code=2, sentence="is not a text file in UTF-8")


def test_a_demo_whose_port_is_taken_says_so(tmp_path, capsys):
    with Web({}) as web:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "job.json").write_text(json.dumps({"replay": web.address}))
        port = web.address.rpartition(":")[2]
        ran = command.said(capsys, "demo", "--output", tmp_path)
        refused(ran, code=2, sentence=f"port {port} cannot be used")


@pytest.mark.parametrize("act", ["inspect", "verify"])
def test_nobody_who_reads_on_is_no_fault(tmp_path, act):
    judged.write(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        line = [sys.executable, "-m", "cahlib.commands.cli", act, tmp_path]
        ran = subprocess.run(line, cwd=command.ROOT, stdout=closed, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_report_that_its_disk_has_no_room_for_is_no_report(tmp_path):
    judged.write(tmp_path)
    with open("/dev/full", "wb") as full:
        line = [sys.executable, "-m", "cahlib.commands.cli", "verify", tmp_path]
        ran = subprocess.run(line, cwd=command.ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    refused(ran, code=1, sentence="No space is left for what is printed")


def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path):
    """Its words go where nobody is, and where no room is: that is not what it is there for."""
    crawl = small.write(tmp_path / "crawl", files=1, links=3)
    reader, writer = os.pipe()
    os.close(reader)
    with small.Pictures() as web, open(writer, "wb") as closed, open("/dev/full", "wb") as full:
        job = small.job(crawl, tmp_path / "set", web)
        ran = command.started("run", *command.options(job), stdout=closed, stderr=full)
        assert ran.wait() == 0
    assert (tmp_path / "set" / "report.html").exists() and not list(verify(tmp_path / "set"))


def test_a_ban_stops_the_run(tmp_path):
    with Web({"/a.wat.gz": Answer(status=403)}) as web:
        crawl = f"http://{web.address}/a.wat.gz"
        output = tmp_path / "dataset"
        ran = command.cah("run", "--crawl", crawl, *MODEL, "--output", output)
        refused(ran, code=1, sentence="banned")
        assert len(web.requests) <= 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path):
    from cahlib.demo import world

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with world.build().serve() as web:
            options = command.options(demo.job(str(disk / "dataset"), web))
            refused(command.cah("run", *options), code=1, sentence="disk")
            assert not list(disk.glob("**/*.part"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

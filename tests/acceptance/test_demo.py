"""The whole way, as a user goes it: the demo's crawl becomes a dataset, whatever is killed.

These tests earn their seconds: they start the command as a process, and kill it.
"""

import fcntl
import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pyarrow.parquet as pq
import pytest

from cahlib import demo
from cahlib.commands.cli import main
from cahlib.core.config import replace_settings
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.demo import world
from tests.world import awake, command, judged
from tests.world.jobs import LIMIT, until


@pytest.fixture(scope="module")
def shown():
    return awake.build()


@pytest.fixture(scope="module")
def web(shown):
    with shown.serve() as web:
        yield web


@pytest.fixture(scope="module")
def whole():
    """The world with all of its traps, and the options of a run that none of them holds up long."""
    shown = awake.endless(world.build())
    with shown.serve() as web:
        yield shown, web, awake.TIMEOUTS


@pytest.fixture(scope="module")
def undisturbed(whole, tmp_path_factory):
    """The dataset of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "dataset"
    _, web, timeouts = whole
    assert main(["run", *run_options(web, folder, **timeouts)]) == 0
    return folder


@pytest.fixture
def held(shown):
    with awake.Held(shown) as web:
        yield web
        web.go.set()


def run_options(web, folder: Path, **more) -> list[str]:
    return command.options(replace_settings(awake.job(str(folder), web), **more))


def rows(folder: Path) -> dict[str, list]:
    """The pairs of a dataset: what a second run must bring again, by uid.

    Floats are near enough: in the last place a processor need not repeat itself. A pair that
    several shards show is taken from the one that is done first, so its page may be another.
    """
    table = pq.read_table(folder / "metadata").to_pylist()
    assert len({row["uid"] for row in table}) == len(table)
    return {
        row["uid"]: {
            name: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            for name, value in row.items()
            if name not in ("page", "LICENSE")
        }
        for row in table
    }


def stats(folder: Path) -> Stats:
    return sum((manifest.stats for manifest in read_manifests(folder)), Stats())


def assert_same(folder: Path, other: Path) -> None:
    assert rows(folder) == rows(other)
    assert list(verify(folder)) == []
    assert not list((folder / "run" / "parcels").iterdir())


def test_every_link_meets_the_fate_that_the_world_foresaw(whole, undisturbed):
    shown, *_ = whole
    found = stats(undisturbed)
    for stage in Stage:
        assert found.unaccounted(stage) == 0
    foreseen = Counter(each.reason for each in shown.exhibits if each.reason) + shown.unread
    for reason in DropReason:
        if reason.stage is not Stage.JUDGE:
            assert (reason, found.dropped[reason]) == (reason, foreseen[reason])
    kept, right = found.left[Stage.JUDGE], sum(each.reason is None for each in shown.exhibits)
    assert 0.8 * right <= kept <= 1.1 * right  # the tiny model errs, but not much


def test_the_same_command_again_does_nothing_twice(whole, undisturbed, capsys):
    _, web, timeouts = whole
    before, asked = rows(undisturbed), len(web.requests)
    ran = command.said(capsys, "run", *run_options(web, undisturbed, **timeouts))
    assert ran.returncode == 0
    assert rows(undisturbed) == before
    again = {urlsplit(request.url).path for request in web.requests[asked:]}
    assert again <= {demo.WAT_PATH}  # a look whether it is still there


#: Runs commands one after the other in a process, and says after which torch was there.
WITHOUT_TORCH = """
import sys
from cahlib.commands.cli import main
for line in sys.stdin.read().splitlines():
    try:
        code = main(line.split("\\t"))
    except SystemExit as ended:
        code = ended.code
    print("did", code, sorted({"torch", "open_clip"} & set(sys.modules)), line)
"""


def test_what_judges_nothing_starts_without_torch(whole, undisturbed, tmp_path):
    _, web, timeouts = whole
    folder = shutil.copytree(undisturbed, tmp_path / "dataset")
    nothing = tmp_path / "none.txt"
    nothing.write_text("http://example.org/nowhere.jpg\n")
    lines = {
        ("--help",): 0,
        ("run", "--help"): 0,
        ("run", "--shards", "-1"): 2,
        ("run", "--crawl", "nothing.wat.gz"): 2,
        ("run", "--crawl", "nothing.wat.gz", "--heads", "nothing.json"): 2,
        ("run", *run_options(web, folder, **timeouts)): 0,  # all is done
        ("inspect", str(folder)): 0,
        ("verify", str(folder)): 0,
        ("dedup", str(folder)): 0,
        ("purge", str(folder), "--urls", str(nothing)): 0,
        ("blocklist", "show", str(nothing)): 2,
    }
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input="\n".join("\t".join(line) for line in lines),
        env=command.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    did = [line for line in ran.stdout.splitlines() if line.startswith("did ")]
    for said, (line, code) in zip(did, lines.items(), strict=True):
        typed = "\t".join(line)
        assert said == f"did {code} [] {typed}", ran.stderr


def workers(process) -> list[psutil.Process]:
    """The scraping processes of a run, and what they are forked from."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        return [each for each in children if "fork_server" in " ".join(each.cmdline())]
    return []


def parcels(folder: Path) -> list[Path]:
    return list(folder.glob("run/parcels/*"))


def leased(folder: Path) -> bool:
    """Whether a shard of a run is being scraped or judged."""
    with suppress(sqlite3.Error):
        ledger = sqlite3.connect(f"file:{folder}/run/ledger.sqlite?mode=ro", uri=True)
        return bool(ledger.execute("SELECT 1 FROM shards WHERE state = 'leased'").fetchall())
    return False


#: Moments of a run at which it is killed, each further on than those before.
MOMENTS = {
    "when it has just begun": leased,
    "while images arrive": parcels,
    "when a parcel is written": lambda folder: list(folder.glob("run/parcels/*-?.json")),
    "while pairs are written": lambda folder: list(folder.glob("metadata/*")),
    "when a shard is in the dataset": lambda folder: list(folder.glob("shards/*.json")),
}


def killed_at(moment, web, folder: Path) -> list[psutil.Process]:
    """Start a run and kill it; gives the scrapers that survive it."""
    process = command.started("run", *run_options(web, folder))
    until(lambda: moment(folder) or process.poll() is not None)
    scrapers = workers(process)
    process.kill()
    process.communicate()
    psutil.wait_procs(scrapers, timeout=LIMIT)
    return [each for each in scrapers if each.is_running()]


def test_a_run_that_is_killed_again_and_again_goes_on_to_the_same_dataset(
    web, undisturbed, tmp_path, capsys
):
    folder = tmp_path / "dataset"
    for name, moment in MOMENTS.items():
        left = killed_at(moment, web, folder)
        assert not left, f"{name}: scrapers end with their run"
    ran = command.said(capsys, "run", *run_options(web, folder))
    assert ran.returncode == 0, ran.stderr
    assert_same(folder, undisturbed)


def test_a_scraper_that_is_killed_costs_nothing(held, undisturbed, tmp_path):
    folder = tmp_path / "dataset"
    process = command.started("run", *run_options(held, folder))
    until(lambda: parcels(folder))
    for each in workers(process):
        each.kill()
    held.go.set()
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert_same(folder, undisturbed)


def test_ctrl_c_ends_a_run_cleanly_and_the_same_command_goes_on(
    held, undisturbed, tmp_path, capsys
):
    folder = tmp_path / "dataset"
    process = command.started("run", *run_options(held, folder))
    until(lambda: parcels(folder))
    command.press_ctrl_c(process)
    line = next(line for line in process.stdout if "finishing what" in line)
    said = line + process.communicate()[0]
    held.go.set()  # not before: all might be done before the run looks for its end
    assert process.returncode == 3 and "Stopped early: " in said
    assert "Traceback" not in said
    assert not list(folder.glob("**/*.part"))
    ran = command.said(capsys, "run", *run_options(held, folder))
    assert ran.returncode == 0, ran.stderr
    assert_same(folder, undisturbed)


def test_a_second_ctrl_c_leaves_at_once_and_loses_nothing(held, undisturbed, tmp_path, capsys):
    folder = tmp_path / "dataset"
    process = command.started("run", *run_options(held, folder))
    until(lambda: parcels(folder))
    command.press_ctrl_c(process)
    assert any("finishing what" in line for line in process.stdout)
    command.press_ctrl_c(process)
    said, _ = process.communicate()
    assert process.returncode in (3, 130), said  # it may have been ready
    assert "Traceback" not in said
    held.go.set()
    assert command.said(capsys, "run", *run_options(held, folder)).returncode == 0
    assert_same(folder, undisturbed)


def test_a_time_limit_ends_a_run_in_time(held, tmp_path):
    folder = tmp_path / "dataset"
    ran = command.cah("run", *run_options(held, folder, hours=2 / 3600))
    assert ran.returncode == 3, ran.stderr
    assert "Stopped early: " in ran.stderr and "the same command again" in ran.stderr
    assert not list(folder.glob("**/*.part"))


def test_two_runs_do_not_write_to_one_folder(web, tmp_path, capsys):
    folder = tmp_path / "dataset"
    (folder / "run").mkdir(parents=True)
    with open(folder / "run" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a run does
        ran = command.said(capsys, "run", *run_options(web, folder))
    assert (ran.returncode, ran.stderr.count("another command is writing")) == (2, 1)


def test_the_folder_of_another_job_is_refused(whole, undisturbed, capsys):
    _, web, timeouts = whole
    options = run_options(web, undisturbed, threshold=0.1, languages="de", **timeouts)
    ran = command.said(capsys, "run", *options)
    assert ran.returncode == 2
    assert "settings: languages en instead of de; threshold 0.22 instead of 0.1." in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_dataset_tells_of_itself(undisturbed, capsys):
    inspected = command.said(capsys, "inspect", undisturbed)
    assert inspected.returncode == 0 and "pairs" in inspected.stdout
    assert command.said(capsys, "verify", undisturbed).returncode == 0
    assert "<svg" in (undisturbed / "report.html").read_text()
    assert json.loads((undisturbed / "run" / "job.json").read_text())["threshold"] == demo.THRESHOLD


def test_a_damaged_dataset_is_found_out(undisturbed, tmp_path, capsys):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    victim = next(copy.glob("images/*.tar"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    ran = command.said(capsys, "verify", copy)
    assert ran.returncode == 1 and victim.name in ran.stdout


def test_what_the_demo_says_to_type_can_be_typed(shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with shown.serve() as web:
        judged.finish(demo.job("my demo", web))
    ran = command.said(capsys, "demo", "--output", "my demo", "--json")
    assert ran.returncode == 0, ran.stderr
    assert sorted(json.loads(ran.stdout)) == command.json_keys("demo")
    line = ran.stderr.splitlines()[-1].split("`")[1]
    assert command.said(capsys, *shlex.split(line)[1:]).returncode == 0

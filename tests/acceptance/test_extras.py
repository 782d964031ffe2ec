"""Every command works where just its extra is installed, and says elsewhere which one it needs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from cahlib import demo
from cahlib.commands.cli import _parser
from cahlib.core.config import replace_settings
from cahlib.core.errors import EXTRAS
from cahlib.core.records import Shard
from cahlib.dataset.write.shard_writer import read_uids
from cahlib.demo.web import Answer
from cahlib.ledger.database import Database
from cahlib.tracker import admin
from cahlib.tracker.app import create_app
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world import cloud as clouds
from tests.world import command, extras, judged, small
from tests.world.jobs import until
from tests.world.ports import free_port
from tests.world.trackers import ask, serving

NO_SERVERS = "no servers were created for"

#: By extra ("" is the base install) and command: arguments, exit code, something that it says.
#: Where that is a mistake of the user's, what the command needs has been imported by then.
COMMANDS = {
    "": {
        "inspect": (["dataset"], 0, "pairs"),
        "blocklist build": (["dataset"], 0, "domains: failed-domains.txt"),
        "blocklist show": (["domains"], 0, "# 1 domains"),
        "guide": ([], 0, "Reading the dataset"),
        "completion": (["bash"], 0, "complete -o"),
        "tracker filter": (["a.bloom", "--items", "1000"], 0, ""),
    },
    "data": {
        "verify": (["dataset"], 0, "Every file is whole"),
        "repair": (["dataset"], 0, "Discarded 0 shards"),
        "purge": (["dataset", "--uids", "uids"], 0, "Removed 1 pair from 1 shard."),
        "dedup": (["dataset", "--apply"], 0, "Removed "),
        "why": (["dataset", "example.com"], 0, "No candidate of this dataset matches"),
    },
    "query": {
        "browse": (["dataset", "--marks", "none/marks"], 2, "marks: there is no folder none"),
        "select": (["dataset", "--where", "similarity > 0.4", "--apply"], 0, "Removed "),
    },
    "tracker": {
        "tracker add": (["--crawl", "a.warc.wat.gz"], 0, "Added 1 WAT files: 2 shards."),
        "tracker stats": ([], 0, "0 of 2 shards are done"),
        "tracker export": (["shards", "--form", "json"], 0, '"state": "todo"'),
        "tracker retry": ([], 0, "0 shards will be done again."),
        "tracker expel": (["ann"], 1, "ann"),
        "tracker checks": ([], 0, ""),
        "tracker backup": (["backup"], 0, ""),
        "tracker restore": (["backup", "--database", "sqlite:///restored.sqlite"], 0, ""),
    },
    "swarm": {
        "swarm up": (["1", "--max-cost", "0.00001"], 2, "more than the limit"),
        "swarm down": ([], 2, NO_SERVERS),
        "swarm list": ([], 0, ""),
        "swarm status": ([], 2, NO_SERVERS),
        "swarm logs": ([], 2, NO_SERVERS),
        "swarm ssh": (["node"], 2, NO_SERVERS),
        "swarm restart": (["node"], 2, NO_SERVERS),
    },
}
#: Those that have a test of their own: the extra, and arguments.
OTHERS = {
    "run": ("gpu", ["--crawl", "a.wat.gz"]),
    "demo": ("gpu", []),
    "score": ("gpu", ["dataset", "--preset", "quality"]),
    "retry": ("gpu", ["dataset"]),
    "gpu": ("gpu", ["--tracker", "http://127.0.0.1:1", "--nickname", "ann"]),
    "worker": ("", []),
    "tracker serve": ("tracker", []),
}

ANY = RequestLimits(address=0, worker=0, newcomers=0)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of an extra, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("extras")
    wheel = extras.wheel(folder)
    return cache(lambda extra: extras.made(folder / (extra or "base"), wheel, extra))


@pytest.fixture
def files(tmp_path):
    """A folder with what the commands are given."""
    manifest = judged.write(tmp_path / "dataset")
    (tmp_path / "uids").write_text(read_uids(tmp_path / "dataset", manifest)[0])
    (tmp_path / "domains").write_text("example.com\n")
    (tmp_path / "a.warc.wat.gz").write_bytes(small.file(0, 1))
    return tmp_path


@pytest.fixture
def cloud(monkeypatch):
    """A cloud without servers, whose account is in the environment."""
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        monkeypatch.setenv("HCLOUD_TOKEN", "token")
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        yield cloud


def known(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    """Every command of a parser, by the words that are typed."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        yield before.strip()
    for name, each in (pair for action in inner for pair in action.choices.items()):
        yield from known(each, f"{before} {name}")


def test_every_command_is_tried():
    here = [name for commands in COMMANDS.values() for name in commands]
    assert sorted(known(_parser())) == sorted([*here, *OTHERS])


@pytest.mark.parametrize("extra", COMMANDS)
def test_commands_work_with_just_their_extra(installed, cloud, files, extra):
    given = COMMANDS[extra]
    lines = [[*name.split(), *arguments] for name, (arguments, _, _) in given.items()]
    done = installed(extra).cah(lines, cwd=files)
    for (name, (_, code, sentence)), (ended, out, errors) in zip(given.items(), done, strict=True):
        assert ended == code and sentence in out + errors, f"{name}: {out}{errors}"


def test_the_base_install_says_what_a_command_needs(installed, files):
    needs = {
        name: (extra, given[0]) for extra in COMMANDS for name, given in COMMANDS[extra].items()
    }
    lacking = {name: each for name, each in (needs | OTHERS).items() if each[0]}
    lines = [[*name.split(), *arguments] for name, (_, arguments) in lacking.items()]
    done = installed("").cah(lines, cwd=files)
    for (name, (extra, _)), (code, _, errors) in zip(lacking.items(), done, strict=True):
        assert (code, errors.count("\n")) == (2, 1), f"{name}: {errors}"
        assert f" is not installed; type: pip install 'cahlib[{extra}]' " in errors, name


def test_the_driver_of_a_url_is_named_with_what_to_type(installed, tmp_path):
    lines = [["inspect", "hf://datasets/ada/set"], ["inspect", "s3://bucket/set"]]
    hub, s3 = installed("").cah(lines, cwd=tmp_path)
    assert hub[0] == 2 and hub[2].endswith("; type: pip install huggingface_hub.\n"), hub
    assert s3[0] == 2 and s3[2].endswith("; type: pip install s3fs.\n"), s3


def test_the_extras_bring_what_they_are_said_to_bring(installed):
    for extra, libraries in EXTRAS.items():
        assert {each for each in libraries if not has(installed(extra), each)} == set(), extra
    assert not [each for each in ("pyarrow", "torch") if has(installed(""), each)]
    assert not [each for each in ("open_clip", "torch") if has(installed("data"), each)]


def has(environment, library):
    return bool([*environment.packages.glob(f"{library}/__init__.py")])


def test_a_volunteer_scrapes_with_the_base_install(installed, tmp_path):
    with tracker(tmp_path) as (url, web):
        process = installed("").start(
            "-m", "cahlib.commands.cli", "worker", "--tracker", url, "--nickname", "ann",
            "--output", "ann", "--replay", web.address, "--workers", 1, "--json", cwd=tmp_path,
        )  # fmt: skip
        out, errors = process.communicate()
    assert process.returncode == 0 and json.loads(out) == {"parcels": 2, "stopped": False}, errors
    assert sorted(json.loads(out)) == command.json_keys("worker")
    assert len([*(tmp_path / "parcels").glob("*.tar")]) == 2


def test_a_run_judges_with_its_extra(installed, tmp_path):
    own = installed("gpu")
    crawl, taken = small.write(tmp_path / "crawl", 1, 3), tmp_path / "taken"
    model, safety = (
        str(own.packages / path.relative_to(extras.ROOT)) for path in (demo.MODEL, demo.SAFETY)
    )
    with small.Pictures() as web, tracker(tmp_path, links=0) as (url, _):
        job = replace_settings(
            small.job(crawl, tmp_path / "dataset", web), model=model, safety=safety
        )
        (taken / "run").mkdir(parents=True)
        # the demo's port is not free, which it says when all that it shows is there
        (taken / "run" / "job.json").write_text(json.dumps({"replay": web.address}))
        judging = ["gpu", "--tracker", url, "--nickname", "ann", "--output", "ann"]
        judging += ["--model", model, "--threshold", "-1", "--json"]
        lines = [["run", *command.options(job)], ["demo", "--output", taken], judging]
        (ran, shown, judged_) = own.cah(lines, cwd=tmp_path)
    assert ran[0] == 0 and "6 pairs from 6 links in 2 shards" in ran[1], ran
    assert shown[0] == 2 and "cannot be used" in shown[2], shown
    assert judged_[0] == 0 and json.loads(judged_[1])["done"] == 0, judged_
    assert sorted(json.loads(judged_[1])) == command.json_keys("gpu")


def test_a_tracker_serves_with_its_extra(installed, tmp_path):
    port = free_port()
    begun = [["tracker", "add", "--crawl", str(tmp_path / "a.warc.wat.gz")]]
    (tmp_path / "a.warc.wat.gz").write_bytes(small.file(0, 1))
    environment = installed("tracker")
    environment.cah(begun, cwd=tmp_path)
    line = ("-m", "cahlib.commands.cli", "tracker", "serve", "--port", port)
    process = environment.start(*line, cwd=tmp_path)
    try:
        until(lambda: healthy(port) or process.poll() is not None)
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate()


def healthy(port: int) -> bool:
    try:
        return ask(f"http://127.0.0.1:{port}", "/healthz").status == 200
    except OSError:
        return False


class Crawl(small.Pictures):
    """A web of pictures that has a WAT file too."""

    def answer(self, request: object) -> Answer:
        if str(getattr(request, "url", "")).endswith(".wat.gz"):
            return Answer(body=small.file(0, 3))
        return super().answer(request)


@contextmanager
def tracker(folder, links=3):
    """A tracker of one WAT file, or of none without links, and the web that it is on."""
    database = Database(f"sqlite:///{folder / 'tracker.sqlite'}")
    migrate(database)
    rules = TrackerRules(upload_url=(folder / "parcels").as_uri())
    app = create_app(TrackerSettings(database=str(database.engine.url), rules=rules, limits=ANY))
    with Crawl() as web, serving(app) as url:
        wat = f"http://{web.address}/a.warc.wat.gz"
        shards = [Shard(id=f"a-{half}", url=wat, half=half) for half in (0, 1)]
        admin.add_wats(database, shards if links else [])
        yield url, web
    database.close()

"""The desk with real runs of the demo's web: started, found again, stopped, torn down, failed."""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cahlib import demo, notebook
from cahlib.core.config import Job, replace_settings
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.upload import upload_shards
from cahlib.demo import world
from cahlib.notebook.last_run import remember_job
from cahlib.notebook.panel import Panel
from cahlib.notebook.process import RunProcess
from cahlib.notebook.results_view import Results
from cahlib.notebook.runtime import Runtime
from cahlib.notebook.text_output import print_progress
from cahlib.run import quote
from tests.world import cloud as clouds
from tests.world import judged, zygote
from tests.world.jobs import LIMIT, until
from tests.world.races import together


@pytest.fixture(scope="module")
def web():
    with world.build().serve() as web:
        yield web


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Runtime(name="Jupyter", gpu=False, widgets=True, output=str(tmp_path / "dataset"))


@pytest.fixture
def values(web, tmp_path):
    job = demo.job(str(tmp_path / "dataset"), web)
    return replace_settings(job, nickname="ada").values()


@pytest.fixture
def desks(monkeypatch):
    """Makes desks; whatever runs in the end is ended."""
    made = []

    def make(place, environment, given):
        made.append(Panel(place, environment | dict(os.environ), given))
        return made[-1]

    monkeypatch.setattr(sys, "executable", zygote.interpreter())
    yield make
    for desk in made:
        desk.close()
        if desk.child.running():
            desk.child.tear_down("", lambda sentence: None)


def test_a_run_is_started_followed_and_its_results_shown(desks, place, values, capsys):
    desk = desks(place, {"HCLOUD_TOKEN": "hetzner-secret"}, values)
    desk.buttons["plan"].click()
    until(lambda: "links" in desk.parts["plan"].value)
    assert not desk.child.running()
    waiting = Results(desk)
    assert "as soon as" in waiting.about.value
    desk.buttons["start"].click()
    assert desk.child.running() and desk.buttons["start"].disabled
    pid = json.loads((desk.child.home / "child.json").read_text())["pid"]
    assert b"hetzner" not in Path(f"/proc/{pid}/environ").read_bytes()  # it makes no servers
    assert desk.form.fields["crawl"].widget.disabled
    again = desks(place, {}, {})  # a second "Run all": without being told, it finds the run
    assert again.child.running() and again.form.job() == desk.form.job()
    again.buttons["start"].click()
    lines = []
    print_progress(desk, lines.append, pause=0.3)
    # before its first state a run is shown by what it says: of itself, or of the disk
    assert "is starting" in lines[0] or "The dataset's disk" in lines[0]
    assert "shards 2/2" in lines[-1] and len(set(lines)) > 3
    assert sum("pairs from" in line for line in lines) == 1  # the log's last words
    again.draw()
    assert again.parts["charts"].value.count("<svg") == 4 and "ended" in again.parts["head"].value
    desk.draw()
    assert str(place.output) in waiting.about.value and "sandbox" in waiting.report.value
    assert list(verify(place.output)) == []
    found = b"".join(p.read_bytes() for p in desk.child.home.parent.rglob("*") if p.is_file())
    assert b"hetzner-secret" not in found
    waiting.pack.click()
    until(lambda: "MB" in waiting.message.value)
    waiting.url.value = f"file://{place.output}-copy"
    waiting.copy.click()
    until(lambda: "was checked there" in waiting.message.value)
    assert list(verify(f"{place.output}-copy")) == []


def test_a_page_of_somebody_elses_is_not_replaced(desks, place, values):
    page = Path(place.output) / "README.md"
    page.parent.mkdir()
    page.write_text("My thesis")
    desk = desks(place, {}, values)
    desk.buttons["start"].click()
    until(lambda: not desk.child.running())
    assert "another README.md" in desk.child.said(lines=1)[0]
    assert page.read_text() == "My thesis"


def test_a_dataset_whose_files_are_elsewhere_is_loaded_and_copied_from_there(
    desks, place, values, tmp_path
):
    there, folder = tmp_path / "drive" / "dataset", Path(place.output)
    kept = judged.write(folder, shard="s-0"), judged.write(folder, first=100, shard="s-1")
    upload_shards([kept[0]], folder, f"file://{there}")
    upload_shards([kept[1]], folder, f"file://{there}", keep_local=False)
    write_pages(folder, values)
    shown = Results(desks(place, {}, values | {"output": f"file://{there}"}))
    for button in (shown.pack, shown.copy):
        shown.url.value = f"file://{tmp_path}/copy"
        shown.message.value = ""
        button.click()
        until(lambda: f"Some shards are at file://{there}" in shown.message.value)
    assert not (tmp_path / "copy").exists() and not list(tmp_path.glob("*.zip"))
    code = re.search("<pre>(.*?)</pre>", shown.about.value, flags=re.DOTALL)[1]
    assert f"&quot;{there}/images/*.tar&quot;" in code
    assert pq.read_table(there / "metadata").num_rows == 30 and f"{there}/metadata" in code


def test_a_run_gets_what_the_form_says_is_killed_and_torn_down(desks, place, values):
    """What CAH_* says may have been changed in the form."""
    Path(".env").write_text("CAH_NICKNAME=eve\nCAH_THRESHOLD=0.9\n")
    desk = desks(place, {"CAH_SHARDS": "7", "CAH_NICKNAME": "bob"}, values)
    assert desk.form.fields["nickname"].text == "ada"
    desk.form.fields["shards"].write("0")
    desk.buttons["start"].click()
    until(lambda: "pid" in desk.child.live())
    stored = json.loads((desk.child.home / "job.json").read_text())
    assert (stored["nickname"], stored["shards"]) == ("ada", 0)
    assert stored["threshold"] == values["threshold"]
    os.kill(desk.child.live()["pid"], signal.SIGKILL)
    until(lambda: not desk.child.running())
    desk.draw()
    assert "crashed" in desk.parts["head"].value
    assert desk.buttons["start"].description == "Go on"
    desk.buttons["start"].click()
    until(lambda: desk.child.live().get("state") == "running")
    assert (desk.child.home / "console-1.log").exists()  # what the killed one said is kept
    desk.buttons["stop"].click()
    assert desk.buttons["stop"].disabled
    desk.stop()  # as another kernel's panel may: it is no abort
    until(lambda: not desk.child.running())
    desk.draw()
    assert "was stopped" in desk.parts["head"].value
    desk.buttons["start"].click()
    until(lambda: desk.child.live().get("state") == "running")
    desk.draw()
    desk.buttons["down"].click()
    until(
        lambda: "nothing of it is left" in desk.message.value and not desk.buttons["plan"].disabled
    )
    assert "was ended at once" in desk.parts["head"].value
    assert "failed" not in desk.parts["head"].value
    assert not desk.buttons["start"].disabled and desk.buttons["down"].disabled


def test_servers_are_planned_and_priced_before_any_is_made(desks, place, values, monkeypatch):
    with clouds.serve(clouds.Cloud({"right-token": clouds.Account()})) as cloud:
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        desk = desks(place, {}, values | {"swarm": 2, "hours": 8, "location": "moon"})
        desk.form.password.value = "wrong-token"
        plan, start = desk.buttons["plan"], desk.buttons["start"]
        desk.form.fields["watchdog"].write("yes")
        plan.click()
        until(
            lambda: "watchdog: put CAH_WATCHDOG_TOKEN" in desk.message.value and not plan.disabled
        )
        desk.form.fields["watchdog"].write("no")
        plan.click()
        until(lambda: "token" in desk.message.value and not plan.disabled)
        assert "token" in desk.form.token_note.value
        desk.form.password.value = "right-token"
        plan.click()
        until(lambda: "location: &#x27;moon&#x27; is not offered" in desk.message.value)
        assert "moon" in desk.form.fields["location"].note.value
        desk.form.fields["location"].write("")
        until(lambda: not plan.disabled)
        for _ in range(2):  # a double click, before any price was seen
            start.click()
            assert start.disabled and "Press Plan first" in desk.message.value
        plan.click()
        until(lambda: not start.disabled)
        assert "EUR" in desk.parts["plan"].value and "8 hours" in desk.parts["plan"].value
        assert "the servers keep costing EUR 0.0140 an hour" in desk.parts["plan"].value
        assert start.description == "Order 2 servers at EUR 0.014 an hour"
        desk.form.fields["max_cost"].write("0.5")  # another job, another promise
        assert start.disabled and desk.parts["plan"].value == ""
        plan.click()
        until(lambda: not start.disabled)
        assert start.description == "Order 2 servers for at most EUR 0.50"
        desk.budget.value = "0.05 EUR, 2 h"
        desk.buttons["fit"].click()
        until(lambda: "for at most EUR 0.05" in start.description)
        assert desk.form.fields["hours"].text == "2" and desk.form.job().place.cores > 1
        again = desks(place, {}, {})  # the kernel was restarted
        assert again.form.fields["cores"].text == desk.form.fields["cores"].text
        monkeypatch.setattr(quote, "_VALID", 0)  # a quarter of an hour later
        desk.draw()
        assert start.disabled and desk.parts["plan"].value == ""
        monkeypatch.setattr(quote, "_VALID", LIMIT)
        desk.draw()
        assert not start.disabled
        desk.form.password.value = "other-token"
        assert start.disabled and desk.parts["plan"].value == ""
    assert "POST /servers" not in cloud.calls and not desk.child.running()


def test_a_click_while_the_plan_is_made_orders_nothing(desks, place, values, monkeypatch):
    """The cloud takes its time; meanwhile the kernel is free, and clicks are ignored."""
    asked, answer = threading.Event(), threading.Event()

    def slow(number, what):
        asked.set()
        answer.wait(LIMIT)

    with clouds.serve(clouds.Cloud({"token": clouds.Account()}, faults=slow)) as cloud:
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        desk = desks(place, {"HCLOUD_TOKEN": "token"}, values | {"swarm": 2})
        desk.buttons["plan"].click()
        until(asked.is_set)
        assert desk.buttons["plan"].disabled and desk.buttons["start"].disabled
        for name in ("plan", "start", "start"):
            desk.buttons[name].click()
        calls = len(cloud.calls)
        answer.set()
        until(lambda: not desk.buttons["start"].disabled)
        assert calls == 1 and not desk.child.running() and "POST /servers" not in cloud.calls


class Meeting(set):
    """A set in which a look waits, for half a second at most, for that of another thread."""

    def __init__(self):
        super().__init__()
        self.both = threading.Barrier(2)

    def __contains__(self, what):
        found = super().__contains__(what)
        with suppress(threading.BrokenBarrierError):
            self.both.wait(0.5)
        return found


def test_what_two_threads_ask_for_at_once_is_done_once(desks, place, values):
    """Clicks are not alone: the thread that draws asks, too."""
    desk, begun, go = desks(place, {}, values), [], threading.Event()

    def work():
        begun.append(None)
        go.wait(LIMIT)

    others = set(threading.enumerate())
    desk._doing = Meeting()
    together(*[lambda: desk._beside("any", work)] * 2)
    go.set()
    for each in set(threading.enumerate()) - others:
        each.join(LIMIT)
    assert len(begun) == 1


def left_behind(cloud, run, *, age):
    """Two servers of a run at the cloud, made so many seconds ago."""
    for number in range(2):
        body = {"name": f"cah-{run}-{number}", "server_type": "cx23", "location": "fsn1"}
        body["labels"] = {"project": "cahlib", "run": run, "role": "node"}
        server = cloud.answer("POST", "/v1/servers", "token", body)["server"]
        when = time.gmtime(time.time() - age)
        server["created"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", when)


@pytest.fixture
def cloud(monkeypatch):
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        cloud.stranger("token")
        yield cloud


def test_servers_that_nobody_works_with_are_named_with_their_price_and_deleted(
    desks, place, values, cloud
):
    left_behind(cloud, "old", age=1000)
    left_behind(cloud, "busy", age=10)  # a driver elsewhere made them just now
    desk = desks(place, {"HCLOUD_TOKEN": "token"}, values)  # a new runtime, the folder is gone
    until(lambda: desk.parts["banner"].value)
    banner = desk.parts["banner"].value
    assert "2 servers of run old are still there" in banner and "EUR 0.0140 an hour" in banner
    assert "can only be deleted" in banner and "busy" not in banner
    assert desk.buttons["adopt"].layout.display == "none"
    desk.buttons["delete"].click()
    until(lambda: "They are gone" in desk.message.value and not desk.parts["banner"].value)
    assert {each["name"] for each in cloud.servers()} == {"stranger", "cah-busy-0", "cah-busy-1"}


def test_a_dead_run_goes_on_with_its_servers_and_orders_none(
    desks, place, values, cloud, monkeypatch
):
    home, started = Path(place.output) / "run", []
    (home / "swarm").mkdir(parents=True)
    (home / "swarm" / "run").write_text("mine")
    gone = {"pid": 1, "born": "0", "state": "running", "written": time.time(), "nodes": [{}] * 2}
    (home / "live.json").write_text(json.dumps(gone))
    left_behind(cloud, "mine", age=0)
    monkeypatch.setattr(
        RunProcess, "start", lambda *given, **more: started.append((given[1], more))
    )
    desk = desks(place, {"HCLOUD_TOKEN": "token"}, values | {"swarm": 5})
    until(lambda: "2 servers of run mine" in desk.parts["banner"].value)
    assert "crashed" in desk.parts["head"].value and not desk.parts["nodes"].value
    desk.buttons["adopt"].click()
    desk.buttons["adopt"].click()  # those that it goes on with are no orphans any more
    [(job, more)] = started
    assert (job.place.swarm, more) == (2, {"servers": 2})
    assert len(cloud.servers()) == 3


def test_of_two_notebooks_in_a_folder_each_finds_what_it_started(desks, place, values, monkeypatch):
    monkeypatch.setenv("HOME", place.output)
    for name in ("ada", "bob"):
        monkeypatch.setenv("JPY_SESSION_NAME", str(Path(f"{name}.ipynb").absolute()))
        remember_job(Job.from_values(values | {"nickname": name}))
    for mine, name in (("ada", "ada"), ("bob", "bob"), ("new", "bob")):
        monkeypatch.setenv("JPY_SESSION_NAME", str(Path(f"{mine}.ipynb").absolute()))
        assert desks(place, {}, {}).form.job().nickname == name
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert desks(place, {}, {}).form.job().nickname == "bob"


def test_functions_and_files_of_the_notebook_share_no_name():
    names = {path.stem for path in Path(notebook.__file__).parent.glob("*.py")}
    assert callable(notebook.form) and not {"form", "results"} & names


def test_a_click_shows_what_is_wrong(desks, place, values):
    desk = desks(place, {}, values | {"nickname": "", "swarm": 2})
    assert "bad" not in desk.form.fields["nickname"].note.value  # nothing was typed yet
    for name in ("plan", "start"):
        desk.buttons[name].click()
        assert "nickname: choose one" in desk.message.value
        assert "Choose one" in desk.form.fields["nickname"].note.value
    desk.form.fields["nickname"].widget.value = "ada"
    desk.buttons["start"].click()
    assert "token: servers need" in desk.message.value
    desk.form.fields["swarm"].write("0")
    desk.budget.value = "10 EUR, 3 h"
    desk.buttons["fit"].click()
    assert "token: servers need" in desk.message.value
    desk.form.fields["swarm"].write("2")
    desk.form.password.value = "tökén"
    desk.buttons["plan"].click()
    until(lambda: "contains invalid characters" in desk.message.value)
    assert "contains invalid characters" in desk.form.token_note.value
    assert not desk.child.running() and not desk.child.home.exists()

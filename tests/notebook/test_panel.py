"""The panel with real runs of the demo's web: started, found again, stopped, torn down, failed."""

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
from tests.world import awake, judged, zygote
from tests.world import cloud as clouds
from tests.world.jobs import LIMIT, until
from tests.world.races import together


@pytest.fixture(scope="module")
def web():
    with world.build().serve() as web:
        yield web


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Runtime(name="Jupyter", gpu=False, widgets=True, output=str(tmp_path / "dataset"))


@pytest.fixture
def values(web, tmp_path):
    job = demo.job(str(tmp_path / "dataset"), web)
    return replace_settings(job, nickname="ada").values()


@pytest.fixture
def panels(monkeypatch):
    """Makes panels; whatever runs in the end is ended."""
    made = []

    def make(runtime, environment, given):
        made.append(Panel(runtime, environment | dict(os.environ), given))
        return made[-1]

    monkeypatch.setattr(sys, "executable", zygote.interpreter())
    yield make
    for panel in made:
        panel.close()
        if panel.process.running():
            panel.process.tear_down("", lambda sentence: None)


def test_a_run_is_started_followed_and_its_results_shown(panels, runtime, values, capsys):
    panel = panels(runtime, {"HCLOUD_TOKEN": "hetzner-secret"}, values)
    panel.buttons["plan"].click()
    until(lambda: "links" in panel.parts["plan"].value)
    assert not panel.process.running()
    waiting = Results(panel)
    assert "as soon as" in waiting.about.value
    panel.buttons["start"].click()
    assert panel.process.running() and panel.buttons["start"].disabled
    pid = json.loads((panel.process.home / "child.json").read_text())["pid"]
    assert b"hetzner" not in Path(f"/proc/{pid}/environ").read_bytes()  # it makes no servers
    assert panel.form.fields["crawl"].widget.disabled
    again = panels(runtime, {}, {})  # a second "Run all": without being told, it finds the run
    assert again.process.running() and again.form.job() == panel.form.job()
    again.buttons["start"].click()
    lines = []
    print_progress(panel, lines.append, pause=0.3)
    # before its first state a run is shown by what it says
    said = "is starting", "The dataset's disk", "Expect about"
    assert any(each in lines[0] for each in said)
    assert "shards 2/2" in lines[-1] and len(set(lines)) > 3
    assert sum("pairs from" in line for line in lines) == 1  # the log's last words
    again.draw()
    assert again.parts["charts"].value.count("<svg") == 4 and "ended" in again.parts["head"].value
    panel.draw()
    assert str(runtime.output) in waiting.about.value and "sandbox" in waiting.report.value
    assert list(verify(runtime.output)) == []
    found = b"".join(p.read_bytes() for p in panel.process.home.parent.rglob("*") if p.is_file())
    assert b"hetzner-secret" not in found
    waiting.url.value = f"file://{runtime.output}-copy"
    for button, sentence in (waiting.pack, "MB"), (waiting.copy, "was checked there"):
        waiting.message.value = ""
        button.click()
        until(lambda: waiting.message.value and "…" not in waiting.message.value)
        assert sentence in waiting.message.value
    assert list(verify(f"{runtime.output}-copy")) == []


def test_a_page_of_somebody_elses_is_not_replaced(panels, runtime, values):
    page = Path(runtime.output) / "README.md"
    page.parent.mkdir()
    page.write_text("My thesis")
    panel = panels(runtime, {}, values)
    panel.buttons["start"].click()
    until(lambda: not panel.process.running())
    assert "another README.md" in panel.process.log_lines(lines=1)[0]
    assert page.read_text() == "My thesis"


def test_a_dataset_whose_files_are_elsewhere_is_loaded_and_copied_from_there(
    panels, runtime, values, tmp_path
):
    there, folder = tmp_path / "drive" / "dataset", Path(runtime.output)
    kept = judged.write(folder, shard="s-0"), judged.write(folder, first=100, shard="s-1")
    upload_shards([kept[0]], folder, f"file://{there}")
    upload_shards([kept[1]], folder, f"file://{there}", keep_local=False)
    write_pages(folder, values)
    shown = Results(panels(runtime, {}, values | {"output": f"file://{there}"}))
    for button in (shown.pack, shown.copy):
        shown.url.value = f"file://{tmp_path}/copy"
        shown.message.value = ""
        button.click()
        until(lambda: f"Some shards are at file://{there}" in shown.message.value)
    assert not (tmp_path / "copy").exists() and not list(tmp_path.glob("*.zip"))
    code = re.search("<pre>(.*?)</pre>", shown.about.value, flags=re.DOTALL)[1]
    assert f"&quot;{there}/images/*.tar&quot;" in code
    assert pq.read_table(there / "metadata").num_rows == 30 and f"{there}/metadata" in code


@pytest.fixture
def held():
    with awake.Held(awake.build()) as web:
        yield web
        web.go.set()


def test_a_run_gets_what_the_form_says_is_killed_and_torn_down(panels, runtime, values, held):
    """What CAH_* says may have been changed in the form; the run goes on until it is stopped."""
    values = replace_settings(awake.job(runtime.output, held), nickname="ada").values()
    Path(".env").write_text("CAH_NICKNAME=eve\nCAH_THRESHOLD=0.9\n")
    panel = panels(runtime, {"CAH_SHARDS": "7", "CAH_NICKNAME": "bob"}, values)
    assert panel.form.fields["nickname"].text == "ada"
    panel.form.fields["shards"].write("0")
    panel.buttons["start"].click()
    until(lambda: "pid" in panel.process.live())
    stored = json.loads((panel.process.home / "job.json").read_text())
    assert (stored["nickname"], stored["shards"]) == ("ada", 0)
    assert stored["threshold"] == values["threshold"]
    os.kill(panel.process.live()["pid"], signal.SIGKILL)
    until(lambda: not panel.process.running())
    panel.draw()
    assert "crashed" in panel.parts["head"].value
    assert panel.buttons["start"].description == "Go on"
    panel.buttons["start"].click()
    until(lambda: panel.process.live().get("state") == "running")
    assert (panel.process.home / "console-1.log").exists()  # what the killed one said is kept
    panel.buttons["stop"].click()
    assert panel.buttons["stop"].disabled
    panel.stop()  # as another kernel's panel may: it is no abort
    until(lambda: not panel.process.running())
    panel.draw()
    assert "was stopped" in panel.parts["head"].value
    panel.buttons["start"].click()
    until(lambda: panel.process.live().get("state") == "running")
    panel.draw()
    panel.buttons["down"].click()
    until(
        lambda: (
            "nothing of it is left" in panel.message.value and not panel.buttons["plan"].disabled
        )
    )
    # at once, if it has not stopped by itself by then
    said = "was ended at once", "was stopped"
    assert any(each in panel.parts["head"].value for each in said)
    assert "failed" not in panel.parts["head"].value
    assert not panel.buttons["start"].disabled and panel.buttons["down"].disabled


def test_servers_are_planned_and_priced_before_any_is_made(panels, runtime, values, monkeypatch):
    with clouds.serve(clouds.Cloud({"right-token": clouds.Account()})) as cloud:
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        panel = panels(runtime, {}, values | {"swarm": 2, "hours": 8, "location": "moon"})
        panel.form.password.value = "wrong-token"
        plan, start = panel.buttons["plan"], panel.buttons["start"]
        panel.form.fields["watchdog"].write("yes")
        plan.click()
        until(
            lambda: "watchdog: put CAH_WATCHDOG_TOKEN" in panel.message.value and not plan.disabled
        )
        panel.form.fields["watchdog"].write("no")
        plan.click()
        until(lambda: "token" in panel.message.value and not plan.disabled)
        assert "token" in panel.form.token_note.value
        panel.form.password.value = "right-token"
        plan.click()
        until(lambda: "location: &#x27;moon&#x27; is not offered" in panel.message.value)
        assert "moon" in panel.form.fields["location"].note.value
        panel.form.fields["location"].write("")
        until(lambda: not plan.disabled)
        for _ in range(2):  # a double click, before any price was seen
            start.click()
            assert start.disabled and "Press Plan first" in panel.message.value
        plan.click()
        until(lambda: not start.disabled)
        assert "EUR" in panel.parts["plan"].value and "8 hours" in panel.parts["plan"].value
        assert "the servers keep costing EUR 0.0140 an hour" in panel.parts["plan"].value
        assert start.description == "Order 2 servers at EUR 0.014 an hour"
        panel.form.fields["max_cost"].write("0.5")  # another job, another promise
        assert start.disabled and panel.parts["plan"].value == ""
        plan.click()
        until(lambda: not start.disabled)
        assert start.description == "Order 2 servers for at most EUR 0.50"
        panel.budget.value = "0.05 EUR, 2 h"
        panel.buttons["fit"].click()
        until(lambda: "for at most EUR 0.05" in start.description)
        assert panel.form.fields["hours"].text == "2" and panel.form.job().place.cores > 1
        again = panels(runtime, {}, {})  # the kernel was restarted
        assert again.form.fields["cores"].text == panel.form.fields["cores"].text
        monkeypatch.setattr(quote, "_VALID", 0)  # a quarter of an hour later
        panel.draw()
        assert start.disabled and panel.parts["plan"].value == ""
        monkeypatch.setattr(quote, "_VALID", LIMIT)
        panel.draw()
        assert not start.disabled
        panel.form.password.value = "other-token"
        assert start.disabled and panel.parts["plan"].value == ""
    assert "POST /servers" not in cloud.calls and not panel.process.running()


def test_a_click_while_the_plan_is_made_orders_nothing(panels, runtime, values, monkeypatch):
    """The cloud takes its time; meanwhile the kernel is free, and clicks are ignored."""
    asked, answer = threading.Event(), threading.Event()

    def slow(number, what):
        asked.set()
        answer.wait(LIMIT)

    with clouds.serve(clouds.Cloud({"token": clouds.Account()}, faults=slow)) as cloud:
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        panel = panels(runtime, {"HCLOUD_TOKEN": "token"}, values | {"swarm": 2})
        panel.buttons["plan"].click()
        until(asked.is_set)
        assert panel.buttons["plan"].disabled and panel.buttons["start"].disabled
        for name in ("plan", "start", "start"):
            panel.buttons[name].click()
        calls = len(cloud.calls)
        answer.set()
        until(lambda: not panel.buttons["start"].disabled)
        assert calls == 1 and not panel.process.running() and "POST /servers" not in cloud.calls


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


def test_what_two_threads_ask_for_at_once_is_done_once(panels, runtime, values):
    """Clicks are not alone: the thread that draws asks, too."""
    panel, begun, go = panels(runtime, {}, values), [], threading.Event()

    def work():
        begun.append(None)
        go.wait(LIMIT)

    others = set(threading.enumerate())
    panel._doing = Meeting()
    together(*[lambda: panel._beside("any", work)] * 2)
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
    panels, runtime, values, cloud
):
    left_behind(cloud, "old", age=1000)
    left_behind(cloud, "busy", age=10)  # a driver elsewhere made them just now
    panel = panels(runtime, {"HCLOUD_TOKEN": "token"}, values)  # a new runtime, the folder is gone
    until(lambda: panel.parts["banner"].value)
    banner = panel.parts["banner"].value
    assert "2 servers of run old are still there" in banner and "EUR 0.0140 an hour" in banner
    assert "can only be deleted" in banner and "busy" not in banner
    assert panel.buttons["adopt"].layout.display == "none"
    panel.buttons["delete"].click()
    until(lambda: "They are gone" in panel.message.value and not panel.parts["banner"].value)
    assert {each["name"] for each in cloud.servers()} == {"stranger", "cah-busy-0", "cah-busy-1"}


def test_a_dead_run_goes_on_with_its_servers_and_orders_none(
    panels, runtime, values, cloud, monkeypatch
):
    home, started = Path(runtime.output) / "run", []
    (home / "swarm").mkdir(parents=True)
    (home / "swarm" / "run").write_text("mine")
    gone = {"pid": 1, "born": "0", "state": "running", "written": time.time(), "nodes": [{}] * 2}
    (home / "live.json").write_text(json.dumps(gone))
    left_behind(cloud, "mine", age=0)
    monkeypatch.setattr(
        RunProcess, "start", lambda *given, **more: started.append((given[1], more))
    )
    panel = panels(runtime, {"HCLOUD_TOKEN": "token"}, values | {"swarm": 5})
    until(lambda: "2 servers of run mine" in panel.parts["banner"].value)
    assert "crashed" in panel.parts["head"].value and not panel.parts["nodes"].value
    panel.buttons["adopt"].click()
    panel.buttons["adopt"].click()  # those that it goes on with are no orphans any more
    [(job, more)] = started
    assert (job.place.swarm, more) == (2, {"servers": 2})
    assert len(cloud.servers()) == 3


def test_of_two_notebooks_in_a_folder_each_finds_what_it_started(
    panels, runtime, values, monkeypatch
):
    monkeypatch.setenv("HOME", runtime.output)
    for name in ("ada", "bob"):
        monkeypatch.setenv("JPY_SESSION_NAME", str(Path(f"{name}.ipynb").absolute()))
        remember_job(Job.from_values(values | {"nickname": name}))
    for mine, name in (("ada", "ada"), ("bob", "bob"), ("new", "bob")):
        monkeypatch.setenv("JPY_SESSION_NAME", str(Path(f"{mine}.ipynb").absolute()))
        assert panels(runtime, {}, {}).form.job().nickname == name
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert panels(runtime, {}, {}).form.job().nickname == "bob"


def test_functions_and_files_of_the_notebook_share_no_name():
    names = {path.stem for path in Path(notebook.__file__).parent.glob("*.py")}
    assert callable(notebook.form) and not {"form", "results"} & names


def test_a_click_shows_what_is_wrong(panels, runtime, values):
    panel = panels(runtime, {}, values | {"nickname": "", "swarm": 2})
    assert "bad" not in panel.form.fields["nickname"].note.value  # nothing was typed yet
    for name in ("plan", "start"):
        panel.buttons[name].click()
        assert "nickname: choose one" in panel.message.value
        assert "Choose one" in panel.form.fields["nickname"].note.value
    panel.form.fields["nickname"].widget.value = "ada"
    panel.buttons["start"].click()
    assert "token: servers need" in panel.message.value
    panel.form.fields["swarm"].write("0")
    panel.budget.value = "10 EUR, 3 h"
    panel.buttons["fit"].click()
    assert "token: servers need" in panel.message.value
    panel.form.fields["swarm"].write("2")
    panel.form.password.value = "tökén"
    panel.buttons["plan"].click()
    until(lambda: "contains invalid characters" in panel.message.value)
    assert "contains invalid characters" in panel.form.token_note.value
    assert not panel.process.running() and not panel.process.home.exists()

"""The whole way of kaggle.sh: a kernel that works, stops in time, and goes on another day.

The stand-in for Kaggle runs what is pushed to it: the notebook's cells, in a process of their own.
These tests earn their seconds: scraping, models and servers are real.
"""

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import pytest

from cahlib import demo
from cahlib.core.config import Job, Output, replace_settings, settings
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.demo import world
from cahlib.demo.web import Answer
from tests.acceptance.test_demo import rows
from tests.world import cloud as clouds
from tests.world import command, forks, hosts, jobs, kaggle, small, zygote
from tests.world.crawl import NAME

TOKEN = "hcloud-token-of-ada"

#: What the real notebook does in its cells: a run of the settings.
_RUN = """
from cahlib.core.config import Job
from cahlib.run.pipeline import run
from cahlib.run.scrapers import open_scrapers

run(Job.from_values(settings), print, scraping=open_scrapers)
"""


_CELLS = """
from cahlib import notebook

panel = notebook.form(settings)
results = notebook.results(panel)
"""

#: Kaggle's module, as far as it is used.
_SECRETS = """
class UserSecretsClient:
    def get_secret(self, label):
        open({asked!r}, "w").write(label)
        return {token!r}
"""


#: The demo's model lies in files, which kaggle.sh does not bring: the kernel has them by itself.
_JUDGE = {"model": str(demo.MODEL), "safety": str(demo.SAFETY)}


class Machine:
    """Kaggle's machine: runs a kernel's cells, and keeps its output."""

    def __init__(self, folder: Path, service: kaggle.Service, **more: str) -> None:
        self.folder, self.service, self.process = folder, service, None
        self.environment = command.environment() | {"HCLOUD_TOKEN": ""} | more
        service.run, service.before = self.start, self.look

    def start(self, request: dict) -> kaggle.Kernel:
        inputs, working = self.folder / "input", self.folder / "working"
        for name in request["datasetDataSources"]:
            (inputs / name).mkdir(parents=True)
            for each, data in self.service.datasets[name].items():
                (inputs / name / each).write_bytes(data)
        working.mkdir(parents=True)
        cells = json.loads(request["text"])["cells"]
        code = [c["source"] for c in cells if "install" not in c["metadata"].get("tags", ())]
        code.insert(1, f"settings |= {_JUDGE!r}")
        script = "\n".join(code).replace("/kaggle/working", str(working))
        where = f"    inputs=__import__('pathlib').Path({str(inputs)!r}),\n    hours="
        script = script.replace("    hours=", where)
        with (self.folder / "log").open("w") as log:
            self.process = forks.start(
                ["-c", script], env=self.environment, cwd=working, stdout=log
            )
        return kaggle.Kernel(request, ["RUNNING"])

    def look(self, name: str) -> None:
        """Before each answer: how the process stands."""
        kernel = self.service.kernel
        if kernel and self.process and self.process.poll() is not None and not kernel.outputs:
            working = self.folder / "working"
            kernel.outputs = {
                str(path.relative_to(working)): path.read_bytes()
                for path in working.rglob("*")
                if path.is_file()
            }
            kernel.log = [(self.folder / "log").read_text()]
            # last: another thread may look meanwhile
            kernel.states = ["ERROR" if self.process.returncode else "COMPLETE"]

    def off(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def launched(tmp_path, job, *, cell=_RUN, **more) -> subprocess.Popen:
    """kaggle.sh as a process, for a job; the notebook that it pushes has this cell."""
    notebook = tmp_path / "gpucah.ipynb"
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    tagged = code | {"metadata": {"tags": ["parameters"]}, "source": "settings = {}"}
    notebook.write_text(json.dumps({"cells": [tagged, code | {"source": cell}], "metadata": {}}))
    told = {
        f"CAH_{setting.name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
        for setting in settings()
        if (value := setting.of(job)) != setting.default and setting.name not in _JUDGE
    }
    return subprocess.Popen(
        ["bash", command.ROOT / "kaggle.sh"],
        env={
            **os.environ, "PYTHONPATH": str(command.ROOT), "CAH_PYTHON": zygote.interpreter(),
            **kaggle.CRAWLS, "KAGGLE_API_ENVIRONMENT": "TEST", "KAGGLE_API_TOKEN": kaggle.TOKEN,
            "CAH_KAGGLE_NOTEBOOK": str(notebook), "CAH_KAGGLE_PAUSE": "0.1", **told, **more,
        },
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


class Crawled(small.Pictures):
    """A crawl of small WAT files, and a web that shows the first one's pictures until it may go."""

    def __init__(self, files: int) -> None:
        super().__init__()
        self.go = Event()
        paths = [f"crawl-data/{NAME}/{n:05}.warc.wat.gz" for n in range(files)]
        listed = gzip.compress("".join(f"{path}\n" for path in paths).encode())
        self._crawl = {f"/crawl-data/{NAME}/wat.paths.gz": Answer(body=listed)}
        for path in paths:
            body = small.file(Path(path).name[:5], links=7)
            self._crawl[f"/{path}"] = Answer(body=body, type="application/gzip")

    def answer(self, request):
        path = urlsplit(request.url).path
        if path.endswith(".jpg") and not path.startswith("/00000-"):
            self.go.wait()
        return self._crawl.get(path) or super().answer(request)

    def __exit__(self, *error):
        self.go.set()
        super().__exit__(*error)


def session(job, service, folder, *, hours, ends):
    """A launch of a job that has so long and ends so; return the shards that are done then."""
    machine, started = Machine(folder, service), time.monotonic()
    process = launched(folder.parent, replace_settings(job, hours=hours))
    said = process.communicate()[0]
    log = folder / "log"
    told = said + (log.read_text() if log.exists() else "")  # no kernel may have begun
    assert process.returncode == ends, told
    assert time.monotonic() - started < hours * 3600 + jobs.LIMIT, said
    machine.off()
    return {each.shard.id for each in read_manifests(job.output.folder)}


def test_a_session_ends_within_its_limit_and_the_next_one_goes_on(tmp_path):
    """On a slow machine a session ends before its first shard; then it is begun with longer."""
    with Crawled(3) as web, kaggle.serve(kaggle.Service()) as service:
        job = replace_settings(
            small.job(tmp_path, tmp_path / "dataset", web),
            crawl=NAME, base_url=f"http://{web.address}/", nickname="ada",
            read_timeout=jobs.LIMIT, total_timeout=jobs.LIMIT,
        )  # fmt: skip
        hours = 0.003
        while not (done := session(job, service, tmp_path / f"{hours}", hours=hours, ends=3)):
            hours *= 2
        assert len(done) <= 2
        assert list(verify(tmp_path / "dataset")) == []
        pairs = rows(tmp_path / "dataset")
        web.go.set()
        assert len(session(job, service, tmp_path / "next", hours=1, ends=0)) == 6
    fresh = {path.stem for path in (tmp_path / "next/working/dataset/metadata").glob("*")}
    assert fresh and not {f"metadata_{shard}" for shard in done} & fresh  # not carried to and fro
    assert list(verify(tmp_path / "dataset")) == []
    assert rows(tmp_path / "dataset").items() > pairs.items()


@pytest.fixture
def cloud(tmp_path):
    """An account whose servers are hosts; one of them is not ours."""
    if hosts.lacking():
        pytest.skip(hosts.lacking())
    with hosts.Hosts(tmp_path / "hosts") as machines:
        with clouds.serve(clouds.Cloud({TOKEN: clouds.Account()}, hosts=machines)) as cloud:
            cloud.stranger(TOKEN)
            yield cloud
            assert [server["name"] for server in cloud.servers()] == ["stranger"]


def test_the_kernel_drives_the_swarm_of_this_machine_by_a_ticket(cloud, tmp_path):
    own = {"HCLOUD_TOKEN": TOKEN, "HCLOUD_ENDPOINT": cloud.url}
    with (
        world.build().serve(host=cloud.hosts.address) as web,
        kaggle.serve(kaggle.Service()) as service,
    ):
        job = replace_settings(
            demo.job(str(tmp_path / "dataset"), web), swarm=1, nickname="ada", hours=1
        )
        machine = Machine(tmp_path / "kaggle", service)
        process = launched(tmp_path, job, **own)
        said = process.communicate()[0]
        machine.off()
    assert process.returncode == 0, said + (machine.folder / "log").read_text()
    assert len([call for call in cloud.calls if call == "POST /servers"]) == 1
    assert list(verify(tmp_path / "dataset")) == [] and rows(tmp_path / "dataset")
    assert any("tls://" in data.decode() for data in _tickets(service))
    assert not any(TOKEN.encode() in body for body in service.received) and TOKEN not in said
    for path in (tmp_path / "kaggle").rglob("*"):
        assert not (path.is_file() and TOKEN.encode() in path.read_bytes()), path


def test_a_kernel_with_the_token_among_its_secrets_has_servers_of_its_own(cloud, tmp_path):
    """The token is at Kaggle only; the kernel runs the notebook's own cells."""
    modules, asked = tmp_path / "modules", tmp_path / "asked"
    modules.mkdir()
    (modules / "kaggle_secrets.py").write_text(_SECRETS.format(asked=str(asked), token=TOKEN))
    own = {
        "PYTHONPATH": f"{modules}{os.pathsep}{command.ROOT}", "HCLOUD_ENDPOINT": cloud.url,
    }  # fmt: skip
    with (
        world.build().serve(host=cloud.hosts.address) as web,
        kaggle.serve(kaggle.Service()) as service,
    ):
        job = replace_settings(
            demo.job(str(tmp_path / "dataset"), web), swarm=1, nickname="ada", hours=1
        )
        machine = Machine(tmp_path / "kaggle", service, **own)
        process = launched(tmp_path, job, cell=_CELLS, CAH_KAGGLE_SECRET="yes")
        said = process.communicate()[0]
        machine.off()
    log = (machine.folder / "log").read_text()
    assert process.returncode == 0, said + log
    assert asked.read_text() == "HCLOUD_TOKEN" and "POST /servers" in cloud.calls
    assert list(verify(tmp_path / "dataset")) == [] and rows(tmp_path / "dataset")
    assert TOKEN not in said + log and not any(TOKEN.encode() in b for b in service.received)
    for path in (tmp_path / "kaggle").rglob("*"):
        assert not (path.is_file() and TOKEN.encode() in path.read_bytes()), path


def _tickets(service):
    return [files["ticket.json"] for files in service.datasets.values()]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_who_leaves_leaves_no_server(cloud, tmp_path, how):
    def runs(request):
        return kaggle.Kernel(request, ["RUNNING"])

    own = {"HCLOUD_TOKEN": TOKEN, "HCLOUD_ENDPOINT": cloud.url}
    own |= {"CAH_CRAWL": "CC-MAIN-2024-10", "CAH_CONTACT": "ada@example.org"}
    job = replace_settings(demo_job(tmp_path), swarm=1, nickname="ada")
    with kaggle.serve(kaggle.Service(run=runs)) as service:
        process = launched(tmp_path, job, **own)
        try:
            # SIGTERM comes while servers are being made, Ctrl-C when the kernel has begun
            awaited = "POST /servers" if how is signal.SIGTERM else "SaveKernel"
            jobs.until(lambda: awaited in cloud.calls + service.calls)
            os.killpg(process.pid, how)  # as a terminal does
            said = process.communicate()[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in (130, -how), said  # bash itself may die of it
    assert "all servers are deleted" in said and "interrupted" in said
    assert len(service.removed) == len(service.datasets)


def demo_job(tmp_path):
    """A job whose kernel is never run."""
    return Job(output=Output(output=str(tmp_path / "dataset")))

"""`cah run --swarm` against a stand-in for the cloud; its servers are hosts with an sshd."""

import gzip
import hashlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import time
import urllib.request
from functools import partial

import pytest

from cahlib import demo
from cahlib.core.config import replace_settings
from cahlib.core.lock import lock_dataset
from cahlib.core.records import DropReason
from cahlib.dataset.maintain.verify import verify
from cahlib.demo import world
from tests.acceptance.test_demo import rows, stats
from tests.world import awake, command, hosts
from tests.world import cloud as clouds
from tests.world.jobs import until

TOKENS = "token-one", "token-two"

pytestmark = pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())


@pytest.fixture
def cloud(tmp_path):
    """Two accounts with limits of their own, whose servers are hosts; one of them is not ours."""
    with hosts.Hosts(tmp_path / "hosts") as machines:
        accounts = {token: clouds.Account(limit=2) for token in TOKENS}
        with clouds.serve(clouds.Cloud(accounts, hosts=machines)) as cloud:
            cloud.stranger(TOKENS[0])
            yield cloud


def own(cloud):
    """The environment of who has the accounts."""
    return {"HCLOUD_TOKEN": ",".join(TOKENS), "HCLOUD_ENDPOINT": cloud.url}


def cah(cloud, *arguments):
    ran = command.cah(*arguments, **own(cloud))
    assert not any(token in ran.stdout + ran.stderr for token in TOKENS)
    return ran


def files_of_this_machine(shown, folder):
    """A WAT file and lists of what to leave out, which lie nowhere else."""
    wat, harm, domains = (folder / name for name in ("demo.warc.wat.gz", "harm", "domains.gz"))
    wat.write_bytes(shown.wat)
    picture = next(each for each in shown.exhibits if each.reason is None)
    [answer] = picture.answers.values()
    harm.write_text(hashlib.sha256(answer.body).hexdigest())
    domains.write_bytes(gzip.compress(b"museum.example.net\natlas.example.net\n"))
    return {"crawl": str(wat), "known_harm": str(harm), "blocked_domains": str(domains)}


def page(url):
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def names(cloud):
    return [server["name"] for server in cloud.servers()]


def test_a_swarm_makes_the_dataset_of_one_machine_and_leaves_nothing(cloud, tmp_path, capsys):
    cloud.hosts.real = True
    shown = awake.build()
    files = files_of_this_machine(shown, tmp_path)
    with shown.serve(host=cloud.hosts.address) as web:
        job = replace_settings(awake.job(str(tmp_path / "swarm"), web), **files)
        ran = cah(cloud, "run", *command.options(replace_settings(job, swarm=2, max_cost=1)))
        assert ran.returncode == 0, ran.stderr
        assert re.search("(boot|install|start|up): cah-", ran.stderr), ran.stderr
        assert "swarm no servers, EUR 0.0140 so far, 0.0000 an hour" in ran.stderr
        job = replace_settings(job, output=str(tmp_path / "alone"))
        alone = command.said(capsys, "run", *command.options(job))
        assert alone.returncode == 0, alone.stderr
    assert names(cloud) == ["stranger"]
    assert rows(tmp_path / "swarm") == rows(tmp_path / "alone")
    here, there = stats(tmp_path / "alone").dropped, stats(tmp_path / "swarm").dropped
    assert here[DropReason.KNOWN_HARM] and here[DropReason.BLOCKED_DOMAIN]
    assert here == there
    assert list(verify(tmp_path / "swarm")) == []
    logs = [path.read_text() for path in (tmp_path / "swarm/run/swarm/logs").glob("*.log")]
    # a shard that was taken back is done twice
    assert len(logs) == 2 and sum(log.count(" is done: ") for log in logs) >= 2
    for path in (tmp_path / "swarm").rglob("*"):
        if path.is_file():
            secret = ("PRIVATE KEY", *TOKENS)
            assert not any(each.encode() in path.read_bytes() for each in secret), path


def test_servers_can_be_brought_up_before_a_run_which_takes_them_over(cloud, tmp_path):
    output = ("--output", tmp_path / "dataset")
    ran = cah(cloud, "swarm", "up", 2, *output, "--json")
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    assert sorted(made) == command.json_keys("swarm up")
    first, second = (name for name in names(cloud) if name != "stranger")
    assert {each["name"] for each in made["nodes"]} == {first, second}
    shown = cah(cloud, "swarm", "status", *output).stdout
    wheel = next((tmp_path / "dataset/run/swarm/wheel").glob("*.whl")).name.split("-")[1]
    for name in (first, second):
        assert re.search(rf"{name} .* idle .* 0\.0070\n", shown), shown
        assert re.search(rf"{name}  cahlib {re.escape(wheel)}: .*distributed", shown), shown
    assert "Register worker" in cah(cloud, "swarm", "logs", *output).stdout
    line = cah(cloud, "swarm", "ssh", second, *output).stdout
    said = subprocess.run([*shlex.split(line), "echo", "hello"], capture_output=True, text=True)
    assert said.stdout == "hello\n", said.stderr
    forward = cah(cloud, "swarm", "ssh", first, "--dashboard", *output)
    [url] = re.findall(r"http://\S+", forward.stderr)
    with subprocess.Popen(shlex.split(forward.stdout), stderr=subprocess.DEVNULL) as tunnel:
        try:
            until(lambda: second in page(f"{url}/main/workers.html"))
        finally:
            tunnel.terminate()
    assert cah(cloud, "swarm", "restart", second, *output).returncode == 0
    wrong = cah(cloud, "swarm", "ssh", "nobody", *output)
    assert wrong.returncode == 2 and first in wrong.stderr
    with world.build().serve(host=cloud.hosts.address) as web:
        job = demo.job(str(tmp_path / "dataset"), web)
        ran = cah(cloud, "run", *command.options(replace_settings(job, swarm=2)))
    assert ran.returncode == 0, ran.stderr
    assert "2 of them exist already" in ran.stderr
    made = [call for call in cloud.calls if call == "POST /servers"]
    assert len(made) == 3  # one of them was refused by the limit of an account
    assert names(cloud) == ["stranger"]


def test_a_second_ctrl_c_skips_the_draining_and_never_the_deleting(cloud, tmp_path):
    serving = world.build().serve(host=cloud.hosts.address)
    with serving as web, open(tmp_path / "said", "w+") as said:
        job = replace_settings(demo.job(str(tmp_path / "dataset"), web), swarm=1)
        job = replace_settings(job, connect_timeout=600, read_timeout=600, total_timeout=600)
        run = command.started("run", *command.options(job), stdout=said, **own(cloud))
        until(lambda: any(demo.WAT_PATH not in each.url for each in web.requests))
        [host] = cloud.hosts.all.values()
        host.cable(plugged=False)  # so that its log is waited for
        run.send_signal(signal.SIGINT)
        until(lambda: "Ctrl-C again" in (tmp_path / "said").read_text())
        run.send_signal(signal.SIGINT)
        assert run.wait() == 130, (tmp_path / "said").read_text()
    assert names(cloud) == ["stranger"]


@pytest.mark.parametrize(("verb", "code"), [("run", 3), ("up", 130)])
def test_ctrl_c_does_not_wait_for_servers_that_are_being_set_up(cloud, tmp_path, verb, code):
    cloud.hosts.dark = True  # none of them will ever answer
    with world.build().serve(host=cloud.hosts.address) as web:
        job = replace_settings(demo.job(str(tmp_path / "dataset"), web), swarm=1)
        line = ["run", *command.options(job)]
        if verb == "up":
            line = ["swarm", "up", 1, "--output", tmp_path / "dataset"]
        process = command.started(*line, **own(cloud))
        try:
            until(lambda: len(cloud.servers()) > 1)
            command.press_ctrl_c(process)
            said = process.communicate()[0]
        finally:
            process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    if verb == "run":
        assert "stopped while servers were being" in said and names(cloud) == ["stranger"]
    else:
        name = (tmp_path / "dataset/run/swarm/run").read_text()
        assert f"costs money until `cah swarm down --run {name}`" in said
        assert len(names(cloud)) == 2


def test_a_closed_terminal_leaves_no_server(cloud, tmp_path):
    cloud.hosts.dark = True
    ours, theirs = pty.openpty()
    with world.build().serve(host=cloud.hosts.address) as web:
        job = replace_settings(demo.job(str(tmp_path / "dataset"), web), swarm=1)
        with open(theirs, "w") as terminal:
            process = command.started(
                "run", *command.options(job), stdout=terminal, **own(cloud)
            )  # fmt: skip
        try:
            until(lambda: len(cloud.servers()) > 1)
            os.close(ours)  # whatever is printed from now on is an error
            for _ in range(2):  # by the kernel, and by the shell
                process.send_signal(signal.SIGHUP)
            assert process.wait() == 3
        finally:
            process.kill()
    assert names(cloud) == ["stranger"]


def test_down_deletes_ours_and_nothing_else(cloud, tmp_path):
    output = ("--output", tmp_path / "dataset")
    assert cah(cloud, "swarm", "up", 1, *output).returncode == 0
    assert len(names(cloud)) == 2
    for server in cloud.servers():
        server["created"] = "2026-01-01T00:00:00+00:00"
    told = cah(cloud, "tracker", "stats", "--database", f"sqlite:///{tmp_path}/tracker.sqlite")
    name = (tmp_path / "dataset/run/swarm/run").read_text()
    assert f"EUR 0.0070 an hour, until you type `cah swarm down --run {name}`" in told.stderr
    assert "still there" not in cah(cloud, "swarm", "logs", *output).stderr
    down = partial(cah, cloud, "swarm", "down", "--output", tmp_path / "another")
    wrong = down("--run", "another")
    assert (
        wrong.returncode == 2
        and f"another has no servers; runs with servers: {name}" in wrong.stderr
    )
    assert len(names(cloud)) == 2
    listed = cah(cloud, "swarm", "list")
    assert re.search(rf"{name} +1 .* EUR 0.0070  nobody works with it", listed.stdout), listed
    [server] = [each for each in cloud.servers() if each["name"] != "stranger"]
    server["labels"]["alive"] = str(int(time.time()))
    busy = down("--run", name)
    assert busy.returncode == 2 and f"servers of run {name}; give --yes" in busy.stderr
    del server["labels"]["alive"]
    gone = down("--run", name)
    assert "1 server was deleted" in gone.stdout and "still there" not in gone.stderr
    assert names(cloud) == ["stranger"]
    assert "There were none; the cloud confirms" in down("--all-runs").stdout
    things = [t for each in cloud.accounts.values() for t in each.things.values()]
    assert sum(map(len, things)) == 1  # keys and firewalls are gone as well


@pytest.fixture
def typed(cloud, monkeypatch, capsys):
    """Types a command that ends before it does anything."""
    for name, value in {**own(cloud), "CAH_CONTACT": "tests@example.org"}.items():
        monkeypatch.setenv(name, value)
    return partial(command.said, capsys)


@pytest.mark.parametrize("verb", [["down"], ["status"], ["logs"], ["ssh", "node"]])
def test_a_folder_whose_run_had_no_servers_is_not_taken_for_one_without(typed, tmp_path, verb):
    ran = typed("swarm", *verb, "--output", tmp_path / "another")
    assert ran.returncode == 2 and "no servers were created for" in ran.stderr
    assert "`cah swarm down --run NAME`" in ran.stderr and not (tmp_path / "another").exists()


def test_servers_are_made_by_one_command_at_a_time(typed, cloud, tmp_path):
    with lock_dataset(tmp_path):
        ran = typed("swarm", "up", "2", "--output", tmp_path)
    assert ran.returncode == 2 and "another command is writing to" in ran.stderr
    assert "POST /servers" not in cloud.calls and "costs money" not in ran.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--swarm", "2", "--location", "moon"], "location: 'moon'"),
        (["--swarm", "2", "--max-cost", "0.001"], "more than the limit"),
        (["--swarm", "1001"], "swarm"),
        (["--swarm", "2", "--engine", "tcp://127.0.0.1:1"], "not both"),
        (["--swarm", "2", "--known-harm", "nowhere"], "known_harm: nowhere cannot be read"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(typed, cloud, tmp_path, options, sentence):
    model = ("--model", demo.MODEL, "--threshold", "0.3", "--output", tmp_path / "dataset")
    with world.build().serve(host=cloud.hosts.address) as web:
        crawl = ("--crawl", f"http://{web.address}{demo.WAT_PATH}")
        ran = typed("run", *crawl, *model, *options)
    assert (ran.returncode, sentence in ran.stderr) == (2, True), ran.stderr
    assert "POST /servers" not in cloud.calls

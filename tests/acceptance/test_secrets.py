"""Secrets are used and never told: not in files, on the screen, nor in the list of processes."""

import os
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from cahlib.commands import cli
from cahlib.core.errors import ConfigError
from cahlib.swarm.hetzner import accounts
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import user_data
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner, provisioned
from tests.world import command, small
from tests.world.cloud import Account, Cloud, serve
from tests.world.jobs import LIMIT

#: In the environment and in .env; a value that is found anywhere has been told.
PLANTED = {
    "HCLOUD_TOKEN": "planted-hcloud-token",
    "CAH_WATCHDOG_TOKEN": "planted-watchdog-token",
    "CAH_TRACKER_SECRET": "planted-tracker-secret",
    "AWS_ACCESS_KEY_ID": "planted-aws-key",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "HF_TOKEN": "planted-hub-token",
    "KAGGLE_KEY": "planted-kaggle-key",
}
DOTENV = {"KAGGLE_USERNAME": "planted-dotenv-one", "SOME_PASSWORD": "planted-dotenv-two"}
MARK = b"planted-"


def spied(process):
    """The command lines of a process and all that it starts, while it lives."""
    seen = set()
    while process.poll() is None:
        with suppress(psutil.Error):
            started = psutil.Process(process.pid)
            for each in [started, *started.children(recursive=True)]:
                with suppress(psutil.Error):
                    seen.add(" ".join(each.cmdline()))
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return seen


def told(folder):
    """The files that hold a planted value."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".env" and MARK in path.read_bytes()
    ]


def test_a_run_tells_no_secret(tmp_path):
    """One file of two cannot be read, so that its error and the advice after it are told, too."""
    crawl = small.write(tmp_path / "crawl", files=2, links=6)
    (tmp_path / "crawl" / "00001.warc.wat.gz").write_bytes(b"no crawl")
    (tmp_path / ".env").write_text("".join(f"{key}={value}\n" for key, value in DOTENV.items()))
    with small.Pictures() as web, (tmp_path / "screen").open("w") as screen:
        job = small.job(crawl, tmp_path / "dataset", web, attempts=1)
        process = subprocess.Popen(
            [sys.executable, "-m", "cahlib.commands.cli", "run", *command.options(job)],
            cwd=tmp_path,
            env={**command.environment(), **PLANTED, "PYTHONFAULTHANDLER": "1"},
            stdout=screen,
            stderr=subprocess.STDOUT,
        )
        lines = spied(process)
        asked = [(request.url, *request.headers.values()) for request in web.requests]
    screen = (tmp_path / "screen").read_text()
    assert process.returncode == 1 and "failed" in screen and "12 pairs" in screen
    assert told(tmp_path) == []
    assert len(lines) > 1 and not any(MARK.decode() in line for line in lines)
    assert not any(MARK.decode() in text for texts in asked for text in texts)
    for act in ("inspect", "verify"):
        ran = command.cah(act, tmp_path / "dataset", **PLANTED)
        assert ran.returncode == 0 and MARK.decode() not in ran.stdout + ran.stderr


def test_a_bug_shows_no_secret(tmp_path):
    """A traceback prints lines of code, never what they hold."""
    script = "from cahlib.swarm.hetzner import accounts; import os\naccounts(os.environ['T'], a=1)"
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        env={**command.environment(), "T": PLANTED["HCLOUD_TOKEN"]},
        capture_output=True,
    )
    assert b"Traceback" in ran.stderr and MARK not in ran.stderr


def test_a_server_is_told_no_secret_of_the_cloud(tmp_path):
    token, said = PLANTED["HCLOUD_TOKEN"], []
    with serve(Cloud({token: Account(limit=2)})) as cloud:
        theirs = accounts(token, endpoint=cloud.url, timeout=LIMIT, poll=0.01)
        keys = SwarmKeys(tmp_path / "keys")
        planned = plan_servers(theirs, ServerLimits(nodes=3))
        made = Provisioner("r1", planned, lambda name: user_data(keys, name), said.append)
        with provisioned(made, public_key="ssh-ed25519 AAAA", pause=0.01, late=0.3):
            servers = repr(cloud.servers())
        assert "cloud-config" in user_data(keys, "any") and "cah-r1" in servers
        assert not any(MARK.decode() in text for text in (servers, *said, user_data(keys, "a")))
        assert not any(MARK.decode() in call for call in cloud.calls)
        with pytest.raises(ConfigError) as caught:
            plan_servers(accounts("planted-wrong", endpoint=cloud.url), ServerLimits(nodes=1))
    assert MARK.decode() not in repr(caught.value) + repr(theirs)
    assert told(tmp_path) == []


def test_what_a_run_starts_inherits_no_token(monkeypatch, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)
    given = ("HCLOUD_TOKEN", "CAH_WATCHDOG_TOKEN")
    for name in given:
        monkeypatch.setenv(name, PLANTED[name])
    monkeypatch.setenv("HCLOUD_ENDPOINT", "http://127.0.0.1:9/v1")

    def scraping(secrets, server):
        inherited = psutil.Process(server._process.pid).environ()
        seen.append((*secrets.values(), *map(os.environ.get, given)))
        assert not inherited.keys() & {*given}

    monkeypatch.setattr(cli, "_scraping", scraping)
    monkeypatch.setattr(cli, "_follow", lambda chosen, job, scraping: 0)
    crawl = small.write(tmp_path / "crawl", files=1, links=1)
    assert cli.main(["run", "--crawl", str(crawl), "--contact", "tests@example.org"]) == 0
    assert seen == [(*(PLANTED[name] for name in given), "", "")]

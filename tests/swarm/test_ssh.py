"""SSH to a host: commands, files, and whom it does not trust."""

import subprocess
import time

import pytest

from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import user_data
from cahlib.swarm.ssh import CommandFailed, Login, Unreachable, await_ssh, ssh_session
from tests.world import hosts
from tests.world.jobs import LIMIT

pytestmark = pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    with hosts.Hosts(tmp_path_factory.mktemp("machines")) as machines:
        yield machines


@pytest.fixture(scope="module")
def login(machines, tmp_path_factory):
    keys = SwarmKeys(tmp_path_factory.mktemp("run") / "keys")
    host = machines.boot("gamma", user_data(keys, "gamma"))
    login = Login(name="gamma", address=host.address, keys=keys)
    await_ssh(login, timeout=LIMIT)
    return login


def test_a_command_gives_its_words_or_says_how_it_failed(login):
    with ssh_session(login) as node:
        assert node.run(["echo", "a b"]) == "a b\n"
        with pytest.raises(CommandFailed, match=r"gamma: `.*` failed \(3\):\nall is lost"):
            node.run("echo all is lost >&2; exit 3")
        assert len(node.run("head -c 3000000 /dev/zero")) == 3_000_000


def test_a_command_that_hangs_ends_at_its_deadline(login):
    started = time.monotonic()
    with ssh_session(login) as node, pytest.raises(CommandFailed, match="took longer than 0.5 s"):
        node.run("while :; do echo still here; sleep 0.1; done", timeout=0.5)
    assert time.monotonic() - started < 60


def test_files_go_both_ways(login, tmp_path):
    with ssh_session(login) as node:
        node.put([(b"one\ntwo\nthree\n", "/home/crawl/note")])
        node.get("/home/crawl/note", tmp_path / "note")
        assert (tmp_path / "note").read_bytes() == b"one\ntwo\nthree\n"
        assert node.tail("/home/crawl/note", lines=2) == "two\nthree\n"
        assert node.tail("/home/crawl/no such note") == ""


def test_another_host_key_than_ours_is_not_trusted(login, tmp_path):
    foreign = SwarmKeys(tmp_path)
    for half in ("private", "public"):
        ours = getattr(login.keys.ssh(), half)
        (tmp_path / ours.name).write_bytes(ours.read_bytes())
    with (
        pytest.raises(Unreachable, match="do not trust"),
        ssh_session(Login(name="gamma", address=login.address, keys=foreign)),
    ):
        pass


def test_openssh_gets_in_with_the_same_pins(login, tmp_path):
    line = [*login.command(tmp_path / "known_hosts"), "hostname -I"]
    ran = subprocess.run(line, capture_output=True, text=True)
    assert ran.stdout.strip() == login.address, ran.stderr


def test_a_host_that_is_cut_off_is_unreachable_in_time(machines, login):
    host = machines.all["gamma"]
    host.cable(plugged=False)
    try:
        started = time.monotonic()
        with pytest.raises(Unreachable, match="no SSH within 1 s"):
            await_ssh(login, timeout=1)
        assert time.monotonic() - started < 60
    finally:
        host.cable(plugged=True)

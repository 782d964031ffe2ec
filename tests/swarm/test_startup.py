"""A swarm begins with the servers that are up; one that never boots keeps nobody waiting."""

from threading import Event

import pytest

from cahlib.core.errors import RunError, Stopped
from cahlib.swarm import hetzner
from cahlib.swarm.install import NotReady
from cahlib.swarm.lifecycle import delete_swarm
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner
from cahlib.swarm.ssh import CommandFailed, Unreachable
from cahlib.swarm.startup import Startup, start_head, start_others
from tests.world import cloud as clouds
from tests.world.jobs import LIMIT, until

TOKEN = "token"


@pytest.fixture
def cloud():
    """A cloud whose servers are only listed."""
    with clouds.serve(clouds.Cloud({TOKEN: clouds.Account(limit=50)})) as cloud:
        yield cloud


def made(cloud, said, nodes=3):
    accounts = hetzner.accounts(TOKEN, endpoint=cloud.url, poll=0.01)
    provisioner = Provisioner(
        "r1", plan_servers(accounts, ServerLimits(nodes=nodes)), lambda name: "", said.append
    )
    provisioner.prepare("ssh-ed25519 AAAA")
    return provisioner


def itself(server):
    return server


def head(cloud):
    [found] = [each["name"] for each in cloud.servers() if each["labels"]["role"] == "head"]
    return found


def not_ready(login, cause):
    error = NotReady(f"{login.name} did not come up: {cause}\n--- the end of its log: 12:01:02")
    error.__cause__ = cause
    return error


def test_work_begins_with_the_head_while_another_server_is_not_up(cloud):
    go, provisioner = Event(), made(cloud, [])

    def bring_up(login, head):
        if login.name != head.name:
            assert go.wait(LIMIT)

    startup = Startup(bring_up)
    leader = start_head(provisioner, startup, itself, report=print)
    assert startup.up() == [leader.name] and len(startup.pending()) == 2
    go.set()
    start_others(provisioner, startup, itself, leader, report=print)
    assert len(startup.up()) == 3 and leader.name == head(cloud)


@pytest.mark.parametrize("never", ["late", "failed"])
def test_if_the_head_does_not_boot_another_one_leads_and_the_others_join_it(cloud, never):
    go, joined, provisioner = Event(), {}, made(cloud, [])
    provisioner.fill()
    first = head(cloud)

    def bring_up(login, head):
        if login.name == first:
            if never == "failed":
                raise not_ready(login, Unreachable("no SSH within 180 s"))
            assert go.wait(LIMIT)
        joined[login.name] = head.name

    startup = Startup(bring_up)
    leader = start_head(provisioner, startup, itself, report=print, late=0)
    assert leader.name == head(cloud) != first
    until(lambda: len(startup.up()) >= 2)
    go.set()
    startup.wait()
    assert set(joined.values()) == {leader.name}
    assert set(joined) == {each["name"] for each in cloud.servers()} - (
        {first} if never == "failed" else set()
    )


def test_servers_that_are_taken_down_on_their_way_are_not_waited_for(cloud):
    go, provisioner = Event(), made(cloud, [])

    def bring_up(login, head):
        if login.name == head.name:
            delete_swarm(provisioner.accounts, provisioner.labels, pause=0.01)
            provisioner.servers()  # as whoever looks at them does
        assert go.wait(LIMIT)

    try:
        with pytest.raises(Stopped, match="were deleted"):
            start_head(provisioner, Startup(bring_up), itself, report=print)
    finally:
        go.set()
    assert not cloud.servers()


def test_what_fails_everywhere_for_the_same_reason_ends_it_after_the_first_round(cloud):
    said = []

    def bring_up(login, head):
        pip = f"{login.name}: `pip install` failed (1):\n{login.id}\nERROR: no wheel for pycld2"
        raise not_ready(login, CommandFailed(pip))

    with pytest.raises(RunError, match="all for the same reason: (?s:.)*no wheel for pycld2"):
        start_head(made(cloud, said), Startup(bring_up), itself, report=said.append)
    assert cloud.calls.count("POST /servers") == 3


def test_what_does_not_answer_is_replaced_before_it_is_given_up(cloud):
    said = []

    def bring_up(login, head):
        raise not_ready(login, Unreachable("no SSH within 180 s"))

    with pytest.raises(RunError, match="no head came up"):
        start_head(made(cloud, said), Startup(bring_up), itself, report=said.append)
    assert cloud.calls.count("POST /servers") == 9 and not cloud.servers()


def test_servers_that_fail_beside_others_are_replaced(cloud):
    said, bad = [], []

    def bring_up(login, head):
        if login.name != head.name and not bad:
            bad.append(login.name)
            raise not_ready(login, CommandFailed("its disk is broken"))

    provisioner, startup = made(cloud, said, nodes=2), Startup(bring_up)
    leader = start_head(provisioner, startup, itself, report=said.append)
    start_others(provisioner, startup, itself, leader, report=said.append)
    assert len(startup.up()) == 2 and bad[0] not in startup.up()
    assert any("its disk is broken" in sentence for sentence in said)

"""Accounts at the cloud: bad tokens, several of them, and a cloud that fails."""

import time

import pytest

from cahlib.core.errors import ConfigError, RunError
from cahlib.swarm import lifecycle
from cahlib.swarm.hetzner import accounts
from cahlib.swarm.provider import Denied, list_servers
from cahlib.swarm.runs import orphan_warnings
from tests.world.servers import ONE, TWO, hold, made, nothing_is_left, two_accounts


@pytest.fixture
def cloud():
    with two_accounts() as cloud:
        yield cloud


def test_a_wrong_token_is_one_sentence_without_the_token(cloud):
    with pytest.raises(ConfigError, match="account 1: unable to authenticate") as caught:
        made(cloud, tokens="wrong-token")
    assert "wrong-token" not in str(caught.value)
    assert "wrong-token" not in repr(accounts("wrong-token"))


@pytest.mark.parametrize("from_call", [1, 2, 3])
def test_what_is_not_the_clouds_api_gets_a_sentence(cloud, from_call):
    cloud.faults = lambda number, what: "nonsense" if number >= from_call else None
    with pytest.raises(
        Denied, match="account 1: the answer is not from Hetzner's API, perhaps from a pr"
    ):
        made(cloud)
        list_servers(accounts(ONE, endpoint=cloud.url, poll=0.01), {})


def test_a_token_that_may_only_read_leaves_nothing(cloud):
    swarm, _ = made(cloud)
    for each in cloud.accounts.values():  # as it is changed between the plan and the making
        each.writes = False
    with pytest.raises(RunError, match="permission to read and write"), hold(swarm):
        pass
    assert nothing_is_left(cloud)


@pytest.mark.parametrize("writes", [False, None])
def test_of_two_tokens_the_bad_one_is_named_and_the_good_one_works(cloud, writes):
    tokens = f"{ONE},{TWO}"
    if writes is None:
        tokens = f"{ONE},token-unknown"
    cloud.accounts[TWO].writes = bool(writes)
    swarm, _ = made(cloud, tokens=tokens)
    assert "account 2: " in swarm.plan.table() and "It is skipped." in swarm.plan.table()
    with hold(swarm):
        assert len(cloud.servers(ONE)) == 3 and not cloud.servers(TWO)
    assert nothing_is_left(cloud)


def test_a_cloud_that_fails_for_a_moment_is_asked_again(cloud):
    swarm, _ = made(cloud, nodes=2)
    asked = iter(["error", "error", None, "error"])
    cloud.faults = lambda number, what: next(asked, None) if what == "POST /servers" else None
    with hold(swarm):
        assert len(cloud.servers()) == 3  # the stranger's too
    assert next(asked, None) is None and nothing_is_left(cloud)


def test_servers_remain_where_this_machine_cannot_ask_any_more(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")  # `pip install -U` has taken it away
    theirs = accounts(ONE, endpoint="https://127.0.0.1:9/v1", poll=0.001)
    with pytest.raises(RunError, match="NOT deleted .*until you type `cah swarm down --run r1`"):
        lifecycle.delete_swarm(theirs, {"project": "cahlib", "run": "r1"}, timeout=0)


def test_two_tokens_of_one_project_find_each_server_once(cloud, tmp_path):
    cloud.accounts[TWO] = cloud.accounts[ONE]
    cloud.accounts[ONE].limit = 5
    swarm, _ = made(cloud, nodes=3)
    with hold(swarm):
        assert len(cloud.servers(ONE)) == 4  # the stranger's too
        assert len(swarm.servers()) == 3
        [sentence] = orphan_warnings(swarm.accounts, now=time.time() + 1000)
        assert sentence.startswith("3 servers of run r1") and "0.0210" in sentence
        (tmp_path / "run").write_text("r1")
        assert len(lifecycle.run_servers(swarm.accounts, tmp_path)) == 3
        swarm.remove(swarm.servers()[-1])
        swarm.fill()
        assert len(swarm.servers()) == 3
    assert not swarm.servers()


def test_many_servers_come_in_pages(cloud):
    cloud.accounts[ONE].limit = 70
    swarm, _ = made(cloud, nodes=60, tokens=ONE)
    with hold(swarm):
        assert len(swarm.servers()) == 60
    assert nothing_is_left(cloud)

"""Every test runs with the network closed but for loopback, and with a clean environment.

`make test` runs them in several processes (pytest-xdist), for many wait more than they compute.
"""

import os
import signal
import socket
from collections import Counter

import hypothesis
import pytest

# Side by side, or in processes of their own, models would wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores Ctrl-C for what it starts in the background, and that is handed down.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing of it while other tests run beside it.
slow = [hypothesis.HealthCheck.too_slow]
common = hypothesis.settings(deadline=None, suppress_health_check=slow, database=None)
# The suite draws the same examples each time; to search for others is for `make fuzz`.
hypothesis.settings.register_profile("tests", common, derandomize=True)
hypothesis.settings.register_profile("fuzz", common, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("tests")

_connect = socket.socket.connect


#: This machine, and the network of `tests.world.hosts` (RFC 2544: never on the internet).
_OURS = ("127.", "::1", "localhost", "198.18.")


def _guarded(self, address):
    sends = self.type == socket.SOCK_STREAM  # a datagram socket only looks for its route
    if sends and isinstance(address, tuple) and not str(address[0]).startswith(_OURS):
        raise AssertionError(f"a test wanted to connect to {address}")
    return _connect(self, address)


@pytest.fixture(autouse=True)
def _closed_world(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(socket.socket, "connect", _guarded)
    for name in list(os.environ):
        if name.startswith(("CAH_", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


#: Tests of one file share what it made once, and stay in one process; these share nothing.
_APART = (
    "acceptance/test_swarm.py", "notebook/test_notebook.py", "swarm/test_fleet.py",
    "swarm/test_watch.py", "tracker/test_chaos.py", "tracker/test_schema.py",
)  # fmt: skip
#: Kaggle's package knows this port only.
_PORT_7777 = ("acceptance/test_kaggle.py", "kaggle/test_session.py", "kaggle/test_shell.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Which tests go to the same process: ``make test`` has several of them."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0].removeprefix("tests/")
            return nodeid if path in _APART else "7777" if path in _PORT_7777 else path

    return Scheduler(config, log)


def pytest_collection_modifyitems(config, items):
    """In several processes, begin with what may take longest: none shall wait for it at the end."""
    if hasattr(config, "workerinput"):
        limits = Counter()
        for item in items:
            for mark in item.iter_markers("timeout"):
                limits[item.path] += mark.args[0]
        items.sort(key=lambda item: -limits[item.path])

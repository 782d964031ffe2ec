"""Every test runs with the network closed but for loopback, and with a clean environment.

`make test` runs them in several processes (pytest-xdist), for many wait more than they compute.
"""

import os
import socket

import pytest

# Side by side, or in processes of their own, models would wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_connect = socket.socket.connect


#: This machine, and the network of `tests.world.hosts` (RFC 2544: never on the internet).
_OURS = ("127.", "::1", "localhost", "198.18.")


def _guarded(self, address):
    if isinstance(address, tuple) and not str(address[0]).startswith(_OURS):
        raise AssertionError(f"a test wanted to connect to {address}")
    return _connect(self, address)


@pytest.fixture(autouse=True)
def _closed_world(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(socket.socket, "connect", _guarded)
    for name in list(os.environ):
        if name.startswith("CAH_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def pytest_itemcollected(item):
    """Tests that share what their file made once stay in one process; all others go anywhere."""
    shared = item._fixtureinfo.name2fixturedefs.values()
    told = item.get_closest_marker("xdist_group")
    if not told and any(made[-1].scope == "module" for made in shared):
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_modifyitems(config, items):
    """Begin with what takes long, for the other processes not to wait for it at the end."""
    if hasattr(config, "workerinput"):
        long = ("timeout", "xdist_group")
        items.sort(key=lambda item: not any(map(item.get_closest_marker, long)))

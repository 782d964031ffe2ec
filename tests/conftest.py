"""Every test runs with the network closed but for loopback, and with a clean environment."""

import os
import socket

import pytest

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

"""Every test runs with the network closed but for loopback, and with a clean environment.

`make test` runs them in several processes (pytest-xdist), for many wait more than they compute;
each of these has a network of its own.
"""

import contextlib
import functools
import gc
import itertools
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers

from tests import quick
from tests.world import forks, memory, rewritten, zygote
from tests.world.isolation import isolate

# What is imported for the tests stays: it is looked through neither now nor later (6 % of the CPU).
gc.disable()

# Side by side, or in processes of their own, models would wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if place := memory.folder():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", place)

# A shell ignores Ctrl-C for what it starts in the background, and that is handed down.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing of it while other tests run beside it.
slow = [hypothesis.HealthCheck.too_slow]
common = hypothesis.settings(deadline=None, suppress_health_check=slow, database=None)
# The suite draws the same examples each time; to search for others is for `make fuzz`. With 100 of
# them, as hypothesis has by itself, they took 4 % of the time.
hypothesis.settings.register_profile("tests", common, derandomize=True, max_examples=50)
# derandomize is said here too: hypothesis turns it on by itself where continuous integration runs
hypothesis.settings.register_profile(
    "fuzz", common, derandomize=False, max_examples=1000, print_blob=True
)
# 100 examples took a quarter of the time of `make quick`.
hypothesis.settings.register_profile("quick", common, derandomize=True, max_examples=10)
hypothesis.settings.load_profile("tests")

_connect = socket.socket.connect


#: This machine, and the network of `tests.world.hosts` (RFC 2544: never on the internet).
_OURS = ("127.", "::1", "localhost", "198.18.")


def _guarded(self, address):
    sends = self.type == socket.SOCK_STREAM  # a datagram socket only looks for its route
    if sends and isinstance(address, tuple) and not str(address[0]).startswith(_OURS):
        raise AssertionError(f"a test wanted to connect to {address}")
    return _connect(self, address)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help=quick.__doc__.splitlines()[0])


def pytest_configure(config):
    if config.getoption("quick"):
        hypothesis.settings.load_profile("quick")
    if config.getoption("--hypothesis-profile") is None:
        # It draws the constants of whatever modules are loaded, too, by the order of the tests.
        providers.is_local_module_file = lambda path: False
    if hasattr(config, "workerinput"):
        isolate()
        sys.executable = forks.PYTHON


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
    """Let the processes be forks of one that has all imported: 4 CPU seconds less for each."""
    if not config.getoption("quick") and "coverage" not in sys.modules:  # these look at imports
        folder = Path(tempfile.mkdtemp(prefix="zygote-"))
        config.add_cleanup(functools.partial(shutil.rmtree, folder))
        for each in zygote.start(folder):
            config.add_cleanup(each.close)
        for spec in specs:
            spec.python = str(folder / "python")
    rewritten.keep()  # while the zygotes import


def pytest_collection(session):
    if session.config.getoption("quick"):
        quick.enforce()
    elif hasattr(session.config, "workerinput"):
        with contextlib.suppress(ImportError):
            import cahlib.model.frameworks  # noqa: F401  open_clip in half the time


def pytest_collectreport(report):
    if report.skipped:  # what is half imported is not there for those that import from it
        sys.modules.pop(report.nodeid.removesuffix(".py").replace("/", "."), None)


def pytest_collection_finish(session):
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module")
def web():
    """A web of pictures that cost nothing, for the modules that have no other."""
    from tests.world import small  # which loads more than quick tests need

    with small.Pictures() as web:
        yield web


@pytest.fixture(scope="session", autouse=True)
def _no_ones_home(tmp_path_factory):
    """Keep what modules share out of the developer's home: measured rates, keys, settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def _homes(tmp_path_factory):
    """A counted folder for each test; pytest's own numbers read all those before, each time."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


#: How the names begin of variables that may be set for whoever runs the tests, and change much.
_PERSONAL = (
    "CAH_", "COLUMNS", "DASK_", "FORCE_COLOR", "HCLOUD_", "IPYTHON", "JUPYTER_", "KAGGLE_",
    "NO_COLOR", "VIRTUAL_ENV", "XDG_",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _closed_world(monkeypatch, _homes):
    monkeypatch.setattr(socket.socket, "connect", _guarded)
    for name in list(os.environ):
        if name.startswith(_PERSONAL) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = next(_homes)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _hard_limits():
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name))[1] for name in names}


@pytest.fixture(autouse=True)
def _limits_stay():
    """No test leaves less to those after it: 1,010 open files once made one of them be skipped."""
    before = _hard_limits()
    yield
    assert _hard_limits() == before


#: Tests of one file share what it made once, and stay in one process; these share nothing.
_APART = (
    "acceptance/test_kaggle.py", "acceptance/test_swarm.py", "notebook/test_panel.py",
    "notebook/test_notebook.py", "swarm/test_provisioning.py", "swarm/test_replacement.py",
    "tracker/test_chaos.py", "tracker/test_together.py",
)  # fmt: skip
#: What takes longest, the longest first; no process shall begin one of them at the end.
_FIRST = (
    "notebook/test_lab.py", "acceptance/test_kaggle.py", "acceptance/test_demo.py",
    "acceptance/test_swarm.py", "engine/test_remote.py", "acceptance/test_committed.py",
    "swarm/test_replacement.py", "notebook/test_notebook.py", "tracker/test_chaos.py",
    "tracker/test_schema.py", "acceptance/test_bad_input.py", "tracker/test_together.py",
    "kaggle/test_shell.py",
)  # fmt: skip
assert all((Path(__file__).parent / name).exists() for name in _APART + _FIRST)


def _place(nodeid):
    return nodeid.partition("::")[0].removeprefix("tests/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Which tests go to the same process: ``make test`` has several of them."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = _place(nodeid)
            return nodeid if path in _APART else path

    return Scheduler(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """In several processes, begin with what takes longest; the order is random but for that."""
    if hasattr(config, "workerinput"):
        first = {place: number - len(_FIRST) for number, place in enumerate(_FIRST)}
        items.sort(key=lambda item: first.get(_place(item.nodeid), 0))

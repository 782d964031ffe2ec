"""Jobs for the engine's tests; workers import them by name."""

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

from distributed import get_worker
from distributed.comm.addressing import get_address_host

import cahlib
from cahlib.core.errors import ShardError
from cahlib.core.path_map import local_path
from cahlib.core.records import Parcel, Shard, Stage, Stats
from cahlib.engine import local
from cahlib.parcel.tar import TarWriter

#: Seconds after which what was awaited will not come: it only ends what hangs, however busy the
#: machine, and a test is done as soon as it came.
LIMIT = 240


def until(true: Callable[[], object]) -> None:
    """Wait for a condition, which must come and stay; the only waiting that tests do."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def wait_for(path: Path) -> int:
    """The number that a file holds, once it is there."""
    until(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


@contextmanager
def local_engine(workers: int) -> Iterator[local.LocalEngine]:
    """An engine of so many processes on this machine."""
    with (
        closing(local.start_server([__name__])) as server,
        local.local_engine(workers, server) as engine,
    ):
        yield engine


def double(number: int, *, limit: float, report: Callable[[object], None]) -> int:
    return 2 * number


def fail(message: str, *, limit: float, report: Callable[[object], None]) -> None:
    raise ShardError(message)


def touch_and_fail(path: Path, *, limit: float, report: Callable[[object], None]) -> None:
    path.touch()
    raise ShardError(path.name)


def end(*, limit: float, report: Callable[[object], None]) -> None:
    """End this process, as the kernel does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def exhaust(*, limit: float, report: Callable[[object], None]) -> None:
    """Ask for more memory than any machine has."""
    bytearray(1 << 60)


def note_and_wait(folder: Path, *, limit: float, report: Callable[[object], None]) -> str:
    """Write this process's id into the file 1, or 2 …, then wait for the file "go"."""
    start = next(n for n in range(1, 9) if not (folder / str(n)).exists())
    (folder / str(start)).write_text(str(os.getpid()))
    until((folder / "go").exists)
    return "done"


def tell_and_wait(folder: Path, *, limit: float, report: Callable[[object], None]) -> str:
    report({"images": 7})
    until((folder / "go").exists)
    return "done"


def count_and_wait(folder: Path, *, limit: float, report: Callable[[object], None]) -> str:
    """Try a hundred links a second, by the clock, until the file "go" is there."""
    stats, began = Stats(), time.monotonic()
    while not (folder / "go").exists():
        stats.left[Stage.FETCH] = int(100 * (time.monotonic() - began))
        report(stats.as_dict())
        time.sleep(0.1)
    return "done"


def write_parcel(
    size: int,
    damage: str,
    folder: Path,
    *,
    limit: float,
    report: Callable[[object], None],
) -> Parcel:
    """A parcel of so many bytes; ``damage`` "disk" spoils what lies there after it was hashed."""
    folder.mkdir(parents=True, exist_ok=True)
    path, data = folder / f"parcel{size}.tar", (b"!" + os.urandom(size))[:size]
    path.with_suffix(".json").write_text("{}")
    path.write_bytes(data if not damage else b"?" + data[1:])
    return Parcel(
        shard=Shard(id=f"parcel{size}", url="http://crawl.example/wat.gz", half=0),
        path=path,
        sha256=sha256(data).hexdigest(),
        size=size,
        images=0,
        stats=Stats(),
        optouts=(),
        started=0.0,
        finished=0.0,
        versions={"first": data[:1].hex()},
    )


def wait_and_write_parcel(
    told: Path, folder: Path, *, limit: float, report: Callable[[object], None]
) -> Parcel:
    """Write a parcel once the file "go" is there."""
    note_and_wait(told, limit=limit, report=report)
    return write_parcel(3000, "", folder, limit=limit, report=report)


def fill_disk(folder: Path, *, limit: float, report: Callable[[object], None]) -> None:
    """Write a parcel that is larger than the disk; nothing of it stays."""
    path = folder / "large.part"
    try:
        with TarWriter(path) as tar:
            for number in range(4):
                tar.add(f"{number}.jpg", bytes(1 << 20))
    finally:
        path.unlink()


def use_disk(folder: Path, *, limit: float, report: Callable[[object], None]) -> str:
    """Fail as on a full disk on the machine that the file "full" names; else tell the machine."""
    host = get_address_host(get_worker().address)
    if (folder / "full").read_text() == host:
        raise OSError(errno.ENOSPC, "No space left on device")
    return host


def hang(folder: Path, *, limit: float, report: Callable[[object], None]) -> str:
    """Stand still for ever with the interpreter's lock held, the first time."""
    report({"images": 1})
    if (folder / "hung").exists():
        return "done"
    (folder / "hung").touch()
    ctypes.PyDLL(None).sleep(1000)
    return "never"


def read_file(path: str, *, limit: float, report: Callable[[object], None]) -> tuple[str, bytes]:
    """Where a file of the driver's lies on this machine, and what is in it."""
    return local_path(path), Path(local_path(path)).read_bytes()


def code(*, limit: float, report: Callable[[object], None]) -> str:
    """The file that cahlib is imported from."""
    return cahlib.__file__

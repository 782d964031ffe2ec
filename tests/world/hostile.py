"""A worker that was taken over: Dask preloads this, and it sends pickles that run code.

What they run notes the process that unpickled it, in the folder of `SPRUNG`.
"""

import copyreg
import os
import pickle
import struct
import zlib
from functools import cache
from pathlib import Path

import distributed.worker
from distributed.protocol import to_serialize
from distributed.protocol.serialize import Serialized, ToPickle

import cahlib.engine.worker
from cahlib.engine.wire import PROGRESS_TOPIC, JobResult, encode

#: In the environment, the folder.
SPRUNG = "TEST_SPRUNG"


#: Which machines a worker speaks for, by the job: the driver's own, and another node.
ELSEWHERE = {"driver": "", "other": "127.0.0.3"}


def spring(way):
    """What the pickles run."""
    (Path(os.environ[SPRUNG]) / f"{way}.{os.getpid()}").touch()
    return ValueError("sprung")


class Trap(Exception):
    """What pickles into a call of `spring`."""

    def __init__(self, way):
        super().__init__(way)
        self.way = way

    def __reduce__(self):
        return spring, (self.way,)


class _Kind(type):
    pass


class Typed(metaclass=_Kind):
    """Whose type pickles so."""


copyreg.pickle(_Kind, lambda _: (spring, ("type",)))


def run_remote_job(job):
    """In place of the real one: answer a job by the way that its key names."""
    key = pickle.loads(job)[0][0]
    worker = distributed.get_worker()
    # not before: a scheduler that does not know what to make of it would not let us in
    worker.metrics["trap"] = lambda _: to_serialize(Trap("metrics"))
    worker.log_event(PROGRESS_TOPIC, to_serialize(Trap("event")))
    worker.log_event("print", {"args": (to_serialize(Trap("print")),)})
    trap = pickle.dumps(Trap("warning"))
    worker.log_event("warn", {"message": trap, "category": trap})
    if key == "type":
        return Typed()
    if key == "exception":
        raise Trap("exception")
    if key == "traceback":
        raise ValueError("traceback")
    if key in ELSEWHERE:
        return encode(JobResult(missing=(0,), host=ELSEWHERE[key]))
    if key == "nothing":
        return b"nothing"
    return Trap(key)


def _error_message(error, status="error"):
    told = _error_message.real(error, status)
    return told | {"traceback": to_serialize(pickle.dumps(Trap("traceback")))}


_error_message.real = distributed.worker.error_message


async def dask_setup(worker):
    cahlib.engine.worker.run_remote_job = run_remote_job
    distributed.worker.error_message = _error_message
    get_data = worker.handlers["get_data"]

    async def sent(comm, keys, **named):
        if "flood" in keys:
            await flood(comm.stream, 0)
        if "bomb" in keys:
            await comm.write({"status": "OK", "data": {"bomb": bomb()}})
            return distributed.core.Status.dont_reply
        if "peer" in keys:
            await comm.write({"status": "OK", "data": {"peer": pickle_me(Trap("peer"))}})
            return distributed.core.Status.dont_reply
        return await get_data(comm, keys=keys, **named)

    worker.handlers["get_data"] = sent


async def flood(stream, before):
    """Announce a message of 2 GiB, after that many bytes of it that are well, and send zeros."""
    if before:
        sizes = struct.pack("QQQ", 2, before, 2 << 30)
        await stream.write(struct.pack("Q", len(sizes) + before) + sizes + bytes(before))
    else:
        await stream.write(struct.pack("Q", 2 << 30))
    for _ in range(2 << 10):
        await stream.write(bytes(1 << 20))


@cache
def bomb():
    """A result that is small until it is decompressed."""
    kind = pickle.dumps(bytes)
    header = {"serializer": "dask", "type-serialized": kind, "compression": ("zlib",)}
    return Serialized(header | {"sub-header": {}}, [zlib.compress(bytes(128 << 20), level=1)])


def pickle_me(thing):
    """What Dask unpickles as soon as the message arrives, at schedulers too."""
    return ToPickle(thing)

"""Keep this process from unpickling what other machines send through Dask.

Dask pickles results, exceptions, warnings, types and graphs, and unpickling runs whatever the
sender likes. After `restrict`, the code of `distributed` in this process reads pickles with a
reader that imports and calls nothing: each name in a pickle becomes a stand-in. Plain data passes;
of the rest, a closed list is converted (the type of bytes, the message of an error, and graphs of
the functions in `ALLOWED_CALLS` on plain data); anything else is
`InvalidMessage`. Workers do not call it, for they run what their driver sends anyway.

Tried with distributed 2025.4.1 and 2026.8. `restrict` tries each way in, and refuses to go on with
a version that unpickles elsewhere.
"""

from __future__ import annotations

import builtins
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from types import ModuleType, SimpleNamespace
from typing import Any

from dask._expr import LLGExpr
from dask._task_spec import Task

from cahlib.core.errors import RunError
from cahlib.engine.message_limits import check_size
from cahlib.engine.wire import JOB_ERRORS, InvalidMessage, RemoteError, printable

#: What a graph may call, by module and name. Nothing here calls them: the scheduler passes their
#: names on to the workers.
ALLOWED_CALLS = {
    ("cahlib.engine.worker", name)
    for name in (
        "run_remote_job",
        "read_piece",
        "write_piece",
        "finish_file",
        "has_file",
        "remove_file",
    )
}

_TYPES = {("builtins", each.__name__): each for each in (bytes, bytearray, memoryview, bool)}

#: Dask's exceptions that a client may receive; of Python's own, all.
_DASK_ERRORS = {
    ("distributed.scheduler", "KilledWorker"),
    ("distributed.scheduler", "NoValidWorkerError"),
    ("distributed.comm.core", "CommClosedError"),
    ("distributed.client", "FutureCancelledError"),
}

#: The module by which tblib, which Dask uses, pickles errors and tracebacks.
_TBLIB = "tblib.pickling_support"

#: Any: their types lack what they export.
_cloudpickle: Any = import_module("cloudpickle")
_distributed: Any = import_module("distributed")
_core: Any = import_module("distributed.core")
_protocol: Any = import_module("distributed.protocol")
_messages: Any = import_module("distributed.protocol.core")
_serialize: Any = import_module("distributed.protocol.serialize")
_graphs: Any = LLGExpr

_LOCK = threading.Lock()


class _StandIn:
    """A stand-in for an object of a pickle: its module and name, and its arguments."""

    of = ("", "")

    def __new__(cls, *args: Any, **_: Any) -> _StandIn:
        made = object.__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _SafeUnpickler(pickle.Unpickler):
    """Reads a pickle into plain data and stand-ins."""

    names = 0

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        self.names += 1
        return type("StandIn", (_StandIn,), {"of": (module, name)})


def safe_loads(data: Any, /, *, buffers: Any = (), **_: Any) -> Any:
    """Read a pickle as this module says; raise Refused for one that is not on its list."""
    check_size(data)
    reader = _SafeUnpickler(BytesIO(data), buffers=buffers)
    try:
        value = reader.load()
    except Exception as error:
        raise InvalidMessage("It sent a pickle that cannot be read.") from error
    return _resolve(value) if reader.names else value


def _refuse(*_: Any, **__: Any) -> Any:
    raise InvalidMessage("It sent a pickle, which is not accepted.")


def _resolve(value: Any) -> Any:
    """Return the object that a value with stand-ins describes, if it is allowed."""
    kind = _qualified_name(value)
    if isinstance(value, type) and kind in _TYPES:
        return _TYPES[kind]
    if isinstance(value, _StandIn):
        if kind == (_TBLIB, "unpickle_traceback"):
            return None
        if kind == ("builtins", "type") and value.args == (None,):
            return type(None)
        if kind == ("dask._expr", "Expr._reconstruct"):
            return _to_graph(*value.args)
        if kind == ("dask._task_spec", "Task"):
            return _to_task(value)
        if (error := _to_error(value)) is not None:
            return error
    raise InvalidMessage(
        f"It sent a pickle of {printable('.'.join(kind), 80) or 'something unknown'}."
    )


def _qualified_name(value: Any) -> tuple[str, str]:
    return getattr(value, "of", ("", "")) if _is_stand_in(value) else ("", "")


def _is_stand_in(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    return issubclass(kind, _StandIn)


def _to_error(value: _StandIn) -> Exception | None:
    """Return an error by its name and message; None if the value is not one."""
    kind, said = value.of, value.args
    if kind[0] == _TBLIB and kind[1].startswith("unpickle_exception") and len(said) > 1:
        kind, said = _qualified_name(said[0]), said[1]
        if isinstance(said, dict):
            said = said.get("args", ())
    parts = said if isinstance(said, tuple) else ()
    message = ": ".join(str(part) for part in parts if isinstance(part, str | int))
    if kind[0] == "cahlib.core.errors" and kind[1] in JOB_ERRORS:
        return JOB_ERRORS[kind[1]](printable(message, 2000))
    python = kind[0] == "builtins" and getattr(builtins, kind[1], None)
    if kind not in _DASK_ERRORS and not (
        isinstance(python, type) and issubclass(python, BaseException)
    ):
        return None
    return RemoteError(kind[1], message)


def _to_graph(kind: Any, graph: Any, token: Any, *_: Any) -> LLGExpr:
    if _qualified_name(kind) != ("dask._expr", "LLGExpr") or not isinstance(graph, dict):
        raise InvalidMessage("It sent a graph of an unknown form.")
    tasks = {key: _to_task(each) for key, each in graph.items()}
    made: LLGExpr = _graphs(tasks, _determ_token=_checked_plain(token))
    return made


def _to_task(value: Any) -> Task:
    if _qualified_name(value) != ("dask._task_spec", "Task") or not isinstance(value.state, tuple):
        raise InvalidMessage("It sent a graph that contains more than tasks.")
    state = dict(zip(Task.get_all_slots(), value.state, strict=True))
    call = _qualified_name(state["func"])
    if call not in ALLOWED_CALLS:
        raise InvalidMessage(
            f"It sent a task that calls {printable('.'.join(call), 80) or 'nothing'}."
        )
    function = getattr(import_module(call[0]), call[1])
    return Task(
        _checked_plain(state["key"]),
        function,
        *_checked_plain(state["args"]),
        **_checked_plain(state["kwargs"]),
    )


def _checked_plain(value: Any) -> Any:
    """Raise Refused if something else than plain data is in it."""
    if isinstance(value, dict):
        for each in (*value, *value.values()):
            _checked_plain(each)
    elif isinstance(value, tuple | list | set):
        for each in value:
            _checked_plain(each)
    elif value is not None and type(value) not in (str, bytes, bytearray, bool, int, float):
        raise InvalidMessage("It sent a task whose arguments are not plain data.")
    return value


def restrict() -> None:
    """Let Dask read pickles in this process only by this module, from now on.

    Raise RunError if this version of `distributed` cannot be restricted.
    """
    with _LOCK:
        try:
            _patch()
            if not _Trap.tried:
                with _logs_silenced():
                    _self_test()
                _Trap.tried = True
        except Exception as error:
            raise RunError(
                f"distributed {_distributed.__version__} cannot be kept from unpickling what other "
                f"machines send ({error}); install distributed==2026.8.0."
            ) from error


def _patch() -> None:
    """Replace everything that unpickles, in all loaded modules of `distributed`."""
    closed: dict[int, Any] = {}
    for real in (pickle, _cloudpickle):
        closed[id(real)] = _write_only(real)
        closed |= {id(real.loads): safe_loads, id(real.load): _refuse}
    closed[id(pickle.Unpickler)] = _refuse
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "distributed":
            for key, value in list(vars(module).items()):
                if id(value) in closed:
                    setattr(module, key, closed[id(value)])
    # other machines also send names of modules to import
    _hook(_serialize, "import_allowed_module", lambda _: _allowed)
    _hook(_messages, "merge_and_deserialize", _refusing)


def _write_only(real: ModuleType) -> ModuleType:
    """Return a copy of a module that can only write pickles."""
    shut = ModuleType(real.__name__)
    vars(shut).update(vars(real))
    vars(shut).update(loads=safe_loads, load=_refuse, Unpickler=_refuse)
    return shut


def _hook(module: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Replace a function, once."""
    before = getattr(module, name)
    if getattr(before, "__module__", "") != __name__:
        setattr(module, name, change(before))


def _allowed(name: str) -> Any:
    """Of the enumerations that a message may name, the one that Dask's own messages do."""
    if name != "distributed.core":
        raise InvalidMessage(f"It sent a name of {printable(name, 80)}.")
    return SimpleNamespace(Status=SimpleNamespace(**_core.Status.__members__))


def _refusing(real: Callable[..., Any]) -> Callable[..., Any]:
    """Put rejected parts of a message in their own place, so that the rest is still read."""

    def merge_and_deserialize(header: Any, frames: Any, deserializers: Any = None) -> Any:
        try:
            return real(header, frames, deserializers=deserializers)
        except Exception as error:  # noqa: BLE001 - guards one message: any error is the sender's
            return (
                error
                if isinstance(error, InvalidMessage)
                else InvalidMessage(printable(str(error), 200))
            )

    return merge_and_deserialize


class _Trap:
    """Springs if it is unpickled."""

    sprung = tried = False

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> None:
    _Trap.sprung = True


@contextmanager
def _logs_silenced() -> Iterator[None]:
    """Keep Dask from logging the rejections in here, which are intended."""
    loggers = [logging.getLogger(f"distributed.protocol.{name}") for name in ("core", "pickle")]
    before = [each.disabled for each in loggers]
    try:
        for each in loggers:
            each.disabled = True
        yield
    finally:
        for each, disabled in zip(loggers, before, strict=True):
            each.disabled = disabled


def _self_test() -> None:
    """Check that each path for pickles is closed, and that our own messages are understood."""
    _Trap.sprung = False
    trap = _protocol.pickle.dumps(_Trap())
    ways: Mapping[str, Callable[[], Any]] = {
        "messages": lambda: _round_trip(_serialize.ToPickle(_Trap())),
        "results": lambda: _round_trip(_serialize.Serialize(_Trap())),
        "types": lambda: _protocol.deserialize(
            {"serializer": "dask", "type-serialized": trap, "sub-header": {}}, [b""]
        ),
        "errors": lambda: _core.clean_exception(trap, trap),
        "pickles": lambda: _protocol.pickle.loads(trap),
    }
    for name, way in ways.items():
        try:
            way()
        except InvalidMessage:
            pass
        if _Trap.sprung:
            raise RuntimeError(f"its {name} are unpickled")
    task = Task("key", import_module("cahlib.engine.worker").read_piece, "path", 0, 1)
    graph = _graphs({"key": task}, _determ_token="token")
    for sent in (
        _serialize.ToPickle(task),
        _serialize.Serialize(graph),
        _serialize.Serialize(b"1"),
    ):
        got = _round_trip(sent)
        if type(got) is not type(sent.data):
            raise RuntimeError(f"it sends a {type(sent.data).__name__} in another form: {got}")


def _round_trip(data: Any) -> Any:
    """Return data after encoding and decoding, as between two machines."""
    return _protocol.loads(list(_protocol.dumps({"data": data})))["data"]

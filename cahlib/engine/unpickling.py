"""Keep this process from unpickling what other machines send through Dask.

Dask pickles results, exceptions, warnings, types and graphs, and unpickling runs whatever the
sender likes. Once `restrict` was called, the code of `distributed` in this process reads pickles
by a reader that imports and calls nothing: each name in a pickle becomes a stand-in. What is plain
data passes; of the rest, a closed list is made into what it stands for (the type of bytes, the
message of an error, and graphs of the functions in `ALLOWED_CALLS` on plain data); anything else is
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

#: What a graph may call, by module and name. Nothing here calls them: the scheduler passes on their
#: names, and workers do what they say.
ALLOWED_CALLS = {
    ("cahlib.engine.job", "run_local_job"),
    *(
        ("cahlib.engine.worker", name)
        for name in (
            "run_remote_job",
            "read_piece",
            "write_piece",
            "finish_file",
            "has_file",
            "remove_file",
        )  # fmt: skip
    ),
}

_TYPES = {("builtins", each.__name__): each for each in (bytes, bytearray, memoryview, bool)}

#: Exceptions of Dask's that a client hears of; of Python's own, all.
_DASK_ERRORS = {
    ("distributed.scheduler", "KilledWorker"),
    ("distributed.scheduler", "NoValidWorkerError"),
    ("distributed.comm.core", "CommClosedError"),
    ("distributed.client", "FutureCancelledError"),
}

#: How tblib, which Dask uses, pickles an error and a traceback.
_TBLIB = "tblib.pickling_support"

#: Any: their types say neither what they export nor what it takes.
_cloudpickle: Any = import_module("cloudpickle")
_distributed: Any = import_module("distributed")
_core: Any = import_module("distributed.core")
_protocol: Any = import_module("distributed.protocol")
_messages: Any = import_module("distributed.protocol.core")
_serialize: Any = import_module("distributed.protocol.serialize")
_graphs: Any = LLGExpr

_LOCK = threading.Lock()


class _StandIn:
    """What a pickle asked for, by its module and name, with what it was to be made of."""

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
    raise InvalidMessage("It sent a pickle, and those are not read.")


def _resolve(value: Any) -> Any:
    """What a value with stand-ins in it stands for."""
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
    """An error as its name and message, None if it is none."""
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
        raise InvalidMessage("It sent a graph of another form than ours have.")
    tasks = {key: _to_task(each) for key, each in graph.items()}
    made: LLGExpr = _graphs(tasks, _determ_token=_checked_plain(token))
    return made


def _to_task(value: Any) -> Task:
    if _qualified_name(value) != ("dask._task_spec", "Task") or not isinstance(value.state, tuple):
        raise InvalidMessage("It sent a graph with something else in it than tasks.")
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
        raise InvalidMessage("It sent a task on something else than plain data.")
    return value


def restrict() -> None:
    """Have Dask read pickles in this process as this module says, from now on.

    Raises RunError if this version of `distributed` does not let itself be restricted.
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
    """Put ours in the place of whatever unpickles, in every module of `distributed` there is."""
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
    # names of what may be imported come from other machines as well
    _hook(_serialize, "import_allowed_module", lambda _: _allowed)
    _hook(_messages, "merge_and_deserialize", _refusing)


def _write_only(real: ModuleType) -> ModuleType:
    """A module that can still write pickles."""
    shut = ModuleType(real.__name__)
    vars(shut).update(vars(real))
    vars(shut).update(loads=safe_loads, load=_refuse, Unpickler=_refuse)
    return shut


def _hook(module: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Replace a function that is there, once."""
    before = getattr(module, name)
    if getattr(before, "__module__", "") != __name__:
        setattr(module, name, change(before))


def _allowed(name: str) -> Any:
    """Of the enumerations that a message may name, the one that Dask's own messages do."""
    if name != "distributed.core":
        raise InvalidMessage(f"It sent a name of {printable(name, 80)}.")
    return SimpleNamespace(Status=SimpleNamespace(**_core.Status.__members__))


def _refusing(real: Callable[..., Any]) -> Callable[..., Any]:
    """What is refused stands for itself in a message: the others in it, and its line, go on."""

    def merge_and_deserialize(header: Any, frames: Any, deserializers: Any = None) -> Any:
        try:
            return real(header, frames, deserializers=deserializers)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it is the sender's
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
    """Keep Dask from logging what is refused in here, for it is meant to be."""
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
    """Try each way that a pickle can take, and that what we send is understood."""
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
    """What comes of data that is sent from one machine to another."""
    return _protocol.loads(list(_protocol.dumps({"data": data})))["data"]

"""Threads that are held up where it hurts: between any two operations of the code under test."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

#: One operation in so many is held up: mostly until another thread has run, and one time in thirty
#: for seconds in which that can ask a server of this machine twice.
_SELDOM, _PAUSES = 10, (0.06, *[0.0] * 29)


@contextmanager
def shaken(*modules: ModuleType, seldom: int = _SELDOM) -> Iterator[None]:
    """This thread, and those that it starts, pause at random within the code of these modules.

    They pause between single operations of the interpreter, so within a line too: between a check
    and what relies on it, and between the reading and the writing of ``+=``.
    """
    files = {module.__file__ for module in modules}
    chance = random.Random(0)

    def enter(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return step

    def step(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "opcode" and chance.randrange(seldom) == 0:
            time.sleep(chance.choice(_PAUSES))
        return step

    before, interval = sys.gettrace(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threading.settrace(enter)
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]
        sys.setswitchinterval(interval)


def together(*tasks: Callable[[], object]) -> None:
    """Run each task in a thread of its own until all have ended; raise the first error of any."""
    errors: list[BaseException] = []

    def guarded(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]

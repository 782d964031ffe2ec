"""A cell that executes while a run is running, so that the session is not ended as idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Seconds between two looks.
_PAUSE = 0.2


def follow_run(running: Callable[[], bool], *, wait: float = 0) -> bool:
    """Execute until the run has ended; return whether there was one.

    A run that is not there yet is waited for so many seconds. Clicks are served meanwhile. An
    interrupt ends the following, not the run.
    """
    deadline, followed = time.monotonic() + wait, False
    try:
        with _clicks() as serve:
            while True:
                going = running()
                followed = followed or going
                if not going and (followed or time.monotonic() >= deadline):
                    return followed
                serve()
                time.sleep(_PAUSE)
    except KeyboardInterrupt:
        print("This cell no longer follows the run; the run continues.")
        return True


@contextmanager
def _clicks() -> Iterator[Callable[[], object]]:
    """Yield what serves the clicks that have come in while this cell executes.

    Up to ipykernel 6, as on Colab and Kaggle, nobody else does; since 7 they come by a channel of
    their own.
    """
    if not hasattr(_kernel(), "do_one_iteration"):
        yield lambda: None
        return
    from jupyter_ui_poll import ui_events

    with ui_events() as poll:
        yield lambda: poll(10)


def _kernel() -> Any:
    try:
        from IPython.core.getipython import get_ipython
    except ModuleNotFoundError:
        return None
    return getattr(get_ipython(), "kernel", None)

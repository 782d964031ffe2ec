"""The notebook: a form, a live view of the run, and its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cahlib.notebook.desk import Desk
    from cahlib.notebook.outcome import Results

#: The desk of the last call: its thread ends when there is another.
_desks: list[Desk] = []


def form(settings: Mapping[str, Any] | None = None) -> Desk:
    """Show the form; with ``settings``, values of a Job's fields, the run is started unasked.

    A run that is going on is found. Where nobody sees widgets, it is followed in lines to its end;
    then ConfigError and RunError are raised, as nobody could read them beside a field. A name in
    ``settings`` that no field has raises ConfigError everywhere.
    """
    from IPython.display import display

    from cahlib.core.config import require_known_settings
    from cahlib.notebook.desk import Desk
    from cahlib.notebook.inputs import hear
    from cahlib.notebook.place import here
    from cahlib.run.environment import environment

    require_known_settings(
        settings or ()
    )  # what is remembered is not asked: it may be an older version's
    while _desks:
        _desks.pop().close()
    place = here()
    desk = Desk(place, environment(), settings or {})
    _desks.append(desk)
    if place.widgets:
        hear(desk.box)
        display(desk.box)  # type: ignore[no-untyped-call]
        desk.watch()
    if settings and not desk.child.running():
        desk.begin(desk.form.job())
    if not place.widgets:
        _followed(desk)
    return desk


def given(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a notebook's variables: ``settings``, and those that have their own.

    Those that are None are not given.
    """
    from cahlib.notebook.fields import FIRST

    own = {name: names[name] for name in FIRST if names.get(name) is not None}
    return {**names.get("settings", {}), **own}


def results(desk: Desk) -> Results:
    """Show what came out: now, or as soon as the run has ended."""
    from cahlib.notebook.outcome import Results

    return Results(desk)


def _followed(desk: Desk) -> None:
    from cahlib.notebook.lines import report_lines

    if not desk.child.running():
        print("Nobody is here to fill in the form, and no settings are given: nothing was started.")
        return
    print(desk.place.terms)
    try:
        report_lines(desk, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        desk.child.stop()  # nobody could press Stop later, and servers cost money
        raise

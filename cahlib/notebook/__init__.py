"""The notebook: a form, a live view of the run, and its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cahlib.notebook.panel import Panel
    from cahlib.notebook.results_view import Results

#: The panel of the last call: its thread ends when there is another.
_panels: list[Panel] = []


def form(settings: Mapping[str, Any] | None = None) -> Panel:
    """Show the form; with ``settings``, values of a Job's fields, the run is started unasked.

    A run that is going on is found. Where nobody sees widgets, it is followed in lines to its end;
    then ConfigError and RunError are raised, as nobody could read them beside a field. A name in
    ``settings`` that no field has raises ConfigError everywhere.
    """
    from IPython.display import display

    from cahlib.core.config import require_known_settings
    from cahlib.notebook.inputs import accept_messages
    from cahlib.notebook.panel import Panel
    from cahlib.notebook.runtime import detect_runtime
    from cahlib.run.environment import read_environment

    require_known_settings(
        settings or ()
    )  # what is remembered is not asked: it may be an older version's
    while _panels:
        _panels.pop().close()
    runtime = detect_runtime()
    panel = Panel(runtime, read_environment(), settings or {})
    _panels.append(panel)
    if runtime.widgets:
        accept_messages(panel.box)
        display(panel.box)  # type: ignore[no-untyped-call]
        panel.watch()
    if settings and not panel.process.running():
        panel.begin(panel.form.job())
    if not runtime.widgets:
        _followed(panel)
    return panel


def given(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a notebook's variables: ``settings``, and those that have their own.

    Those that are None are not given.
    """
    from cahlib.notebook.fields import FIRST_FIELDS

    own = {name: names[name] for name in FIRST_FIELDS if names.get(name) is not None}
    return {**names.get("settings", {}), **own}


def results(panel: Panel) -> Results:
    """Show what came out: now, or as soon as the run has ended."""
    from cahlib.notebook.results_view import Results

    return Results(panel)


def _followed(panel: Panel) -> None:
    from cahlib.notebook.text_output import print_progress

    if not panel.process.running():
        print("Nothing was started: nobody can fill in the form here, and no settings are given.")
        return
    print(panel.runtime.terms)
    try:
        print_progress(panel, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        panel.process.stop()  # nobody could press Stop later, and servers cost money
        raise

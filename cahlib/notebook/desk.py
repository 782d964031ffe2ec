"""The desk: the form with its buttons, and below it the run as it goes on.

A thread draws the run about once a second into widgets, so the cell's output does not grow, and a
busy kernel hides nothing. The run itself is a process of its own: closing the desk ends nothing.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from cahlib.config import Job, Output, settings
from cahlib.errors import CahError, RunError, missing
from cahlib.estimate import expected
from cahlib.notebook import view
from cahlib.notebook.child import Child
from cahlib.notebook.fields import Form
from cahlib.notebook.memory import remember, remembered
from cahlib.notebook.place import Place, online, secret

_LOG = logging.getLogger(__name__)

#: Seconds between two drawings of the run, and of the pairs and nodes in it.
_TICK, _TURN = 1.0, 5.0
#: Seconds between two lines where no widgets are shown.
_HEARTBEAT = 60.0

#: What the log says now and then of how the run stands.
_PLAIN = re.compile(r"\d+ s, shards ")

#: The parts of the view, from top to bottom.
_PARTS = ("head", "charts", "nodes", "losses", "gallery", "log")


class Desk:
    """What the notebook's cell shows."""

    def __init__(
        self, place: Place, environment: Mapping[str, str], given: Mapping[str, Any]
    ) -> None:
        """``given`` are values of a Job's fields; without any, those of the last start."""
        self.place, self._environment = place, environment
        chosen = given or remembered()
        values = {"output": place.output, **_inherited(environment), **chosen}
        self.form = Form(values, token=secret(environment), changed=self._changed)
        self.child = Child(self._home())
        self._planned: Job | None = None
        self._closed, self._drawing = threading.Event(), threading.Lock()
        self._was_running = False
        self._watchers: list[Callable[[bool], None]] = []
        self.message, self.plan_shown = widgets.HTML(), widgets.HTML()
        self.parts = {name: widgets.HTML() for name in _PARTS}
        self.buttons = {
            "plan": _button("Plan", self._guarded(self.plan)),
            "start": _button("Start", self._guarded(self.start), style="success"),
            "stop": _button("Stop", self._guarded(self.stop), style="warning"),
            "down": _button("Tear down now", self._guarded(self.tear_down), style="danger"),
        }
        self._unsafe = widgets.Checkbox(description="show unsafe pictures", indent=False)
        self._unsafe.observe(lambda _: self.draw(turned=True), names="value")
        self._fold = widgets.Accordion(children=[self.form.box], selected_index=0)
        self._fold.set_title(0, "settings")
        self.box = self._laid_out()
        self.form.check()
        self.draw(turned=True)

    def plan(self) -> None:
        """Show what the job will make, cost and bring; makes nothing."""
        job = self.form.job()
        servers = ""
        if job.place.has_servers:
            from cahlib.scrapers import planned

            self._say("Asking the cloud for offers and prices …")
            servers = planned(job, self.form.token)
            self._say("")
        self._planned = job
        self.plan_shown.value = view.plan(servers, "" if servers else expected(job))

    def start(self) -> None:
        """Start the run; servers are made only after their plan was shown."""
        job = self.form.job()
        if job.place.has_servers and self._planned != job:
            self.plan()
            self.buttons["start"].description = "Start at this price"
            return
        self.begin(job)

    def begin(self, job: Job) -> None:
        """Start the run of a job, or find it if it is going on."""
        online(self.place)
        self.child = Child.of(job)
        self.child.start(job, self.form.token, self._environment)
        remember(job)
        self.draw(turned=True)

    def stop(self) -> None:
        """Ask the run to end cleanly."""
        self.child.stop()
        self._say("Stopping: what is being judged is finished, servers are deleted.")

    def tear_down(self) -> None:
        """End the run at once and delete its servers, without making the kernel wait."""
        child, token = self.child, self.form.token

        def work() -> None:
            child.tear_down(token, self._say)

        threading.Thread(target=self._guarded(work), daemon=True).start()

    def watch(self) -> None:
        """Draw the run from now on, in a thread."""
        threading.Thread(target=self._draw_on, daemon=True).start()

    def close(self) -> None:
        """Draw no more; the run goes on."""
        self._closed.set()

    def on_drawing(self, watcher: Callable[[bool], None]) -> None:
        """Tell now, and at each drawing, whether the run is going on; never two at once."""
        with self._drawing:
            self._watchers.append(watcher)
            watcher(self.child.running())

    def follow(self, say: Callable[[str], None], *, pause: float = _HEARTBEAT) -> None:
        """Tell of the run in lines until it has ended; raises RunError if it failed."""
        told: set[str] = set()
        next_line = 0.0
        while self.child.running():
            if time.monotonic() >= next_line:
                self._tell(say, told, running=True)
                next_line = time.monotonic() + pause
            time.sleep(0.2)
        live = self.child.live()
        if live.get("state") != "ended":
            raise RunError(live.get("sentence") or " ".join(self.child.said(lines=1)))
        self._tell(say, told, running=False)

    def _tell(self, say: Callable[[str], None], told: set[str], *, running: bool) -> None:
        """Say how the run stands, and what is new in its log beside that."""
        said = self.child.said(lines=20)
        for line in [each for each in said if each not in told and not _PLAIN.match(each)]:
            told.add(line)
            say(line)
        say(view.text(self.child.live(), running=running))

    def draw(self, *, turned: bool = False) -> None:
        """Draw the run as it is now; its pairs and nodes only if ``turned``."""
        with self._drawing:
            child = self.child  # another click may put another in its place
            running, live = child.running(), child.live()
            self._put("head", view.head(live, running=running))
            self._put("charts", view.charts(live))
            self._put("losses", view.losses(live))
            self._put("log", view.log(child.said()))
            if turned or running != self._was_running:
                self._put("nodes", view.nodes(live, int(time.time() / _TURN)))
                self._put("gallery", view.gallery(live, clear=self._unsafe.value))
            unsafe = any(pair["clear"] for pair in live.get("latest") or ())
            self._unsafe.layout.display = None if unsafe else "none"
            self._was_running = running
            self._allow(running, stopping=live.get("state") == "stopping")
            for each in self._watchers:
                each(running)

    def _allow(self, running: bool, *, stopping: bool) -> None:
        """Let be clicked what can be done now; the settings of a run that goes on are folded."""
        if running and not self.buttons["start"].disabled:
            self._fold.selected_index = None
        allowed = {
            "plan": not running,
            "start": not running,
            "stop": running and not stopping,
            "down": running or self.child.has_servers,
        }
        for name, button in self.buttons.items():
            button.disabled = not allowed[name]
        self.form.freeze(running)

    def _put(self, name: str, html: str) -> None:
        if self.parts[name].value != html:
            self.parts[name].value = html

    def _draw_on(self) -> None:
        turned = 0.0
        while not self._closed.wait(_TICK):
            turn = time.monotonic() - turned >= _TURN
            turned = time.monotonic() if turn else turned
            try:
                self.draw(turned=turn)
            except Exception as error:  # noqa: BLE001 - the next drawing may be right again
                self._fault(error)

    def _laid_out(self) -> widgets.VBox:
        terms = " ".join(filter(None, (self.place.terms, self.place.advice)))
        return widgets.VBox(
            [
                widgets.HTML(f'{view.STYLE}<div class="cah dim">{escape(terms)}</div>'),
                self._fold,
                widgets.HBox(
                    list(self.buttons.values()), layout=widgets.Layout(flex_flow="row wrap")
                ),
                self.message,
                self.plan_shown,
                *(self.parts[name] for name in ("head", "charts", "nodes", "losses")),
                self._unsafe,
                *(self.parts[name] for name in ("gallery", "log")),
            ]
        )

    def _changed(self) -> None:
        """Something else was typed: the plan holds no more, and the dataset may be another."""
        self._planned = None
        self.buttons["start"].description = "Start"
        self.plan_shown.value = ""
        if not self.child.running():
            self.child = Child(self._home())

    def _home(self) -> Path:
        return Output(output=self.form.fields["output"].text.strip() or "dataset").folder / "run"

    def _say(self, sentence: str, *, bad: bool = False) -> None:
        look = " bad" if bad else ""
        self.message.value = (
            f'<div class="cah"><div class="said{look}">{escape(sentence)}</div></div>'
        )

    def _guarded(self, action: Callable[[], None]) -> Callable[..., None]:
        """An action whose errors are shown: beside the field that they name, or below the form."""

        def clicked(*_: Any) -> None:
            self._say("")
            try:
                try:
                    action()
                except ModuleNotFoundError as error:
                    raise missing(error, "gpu") from error
            except CahError as error:
                self.form.blame(error)
                self._say(str(error), bad=True)  # too: the field may be folded away
            except Exception as error:  # noqa: BLE001 - a click's fault must be seen, not lost
                self._fault(error)

        return clicked

    def _fault(self, error: Exception) -> None:
        _LOG.error("a fault in the notebook", exc_info=error)
        self._say(f"A fault of cahlib's: {type(error).__name__}: {error}", bad=True)


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Values that CAH_* variables give."""
    names = ((each.name, f"CAH_{each.name.upper()}") for each in settings())
    return {name: environment[variable] for name, variable in names if variable in environment}


def _button(title: str, clicked: Callable[..., None], *, style: str = "") -> widgets.Button:
    button = widgets.Button(description=title, button_style=style)
    button.on_click(clicked)
    return button

"""The panel: the form with its buttons, and below it the progress of the run.

One thread updates the widgets about once per second, so the cell's output does not grow, and a busy
kernel hides nothing. Slow actions run in background threads. The run is a process of its own:
closing the panel does not end it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from cahlib.core.background import BackgroundLoop
from cahlib.core.config import Job, Output, rename_former
from cahlib.core.errors import CahError, RunError, missing_library_error
from cahlib.core.run_directory import RunDirectory
from cahlib.core.secret_store import WATCHDOG_VARIABLE
from cahlib.crawl import index
from cahlib.notebook import state, view
from cahlib.notebook.budget import fit_to_budget, parse_budget
from cahlib.notebook.fields import SettingsForm
from cahlib.notebook.follow import follow_run
from cahlib.notebook.inputs import close_widgets
from cahlib.notebook.last_run import last_settings, remember_job
from cahlib.notebook.machine import MachineMonitor
from cahlib.notebook.orphans import OrphanMonitor
from cahlib.notebook.process import RunProcess
from cahlib.notebook.runtime import Runtime, find_token, mount_drive, require_internet
from cahlib.run.environment import environment_settings
from cahlib.run.quote import Quote, make_quote

_LOG = logging.getLogger(__name__)

#: Seconds between two drawings of the run, and of the pairs and nodes in it.
_TICK, _TURN = 1.0, 5.0
#: The parts of the view, from top to bottom.
_PARTS = ("banner", "plan", "head", "charts", "nodes", "losses", "gallery", "log")

#: The buttons for servers that nobody works with: only there when there are such.
_RESCUE = ("delete", "adopt")
#: Buttons that are there only when they can be clicked.
_SHOWN = {*_RESCUE, "mount"}
#: What is done beside without keeping anybody from a click.
_QUIETLY = {"look", "crawls"}


class Panel:
    """The content of the notebook's cell."""

    def __init__(
        self, runtime: Runtime, environment: Mapping[str, str], given: Mapping[str, Any]
    ) -> None:
        """``given`` are values of a Job's fields; without any, those of the last start."""
        self.runtime, self._environment = runtime, environment
        chosen = rename_former(given or last_settings())
        values = {"output": runtime.output, **environment_settings(environment), **chosen}
        self.form = SettingsForm(
            values, token=find_token(environment), changed=self._changed, warning=self._warning
        )
        self.process = RunProcess(self._home())
        self._quote: Quote | None = None  #: of the settings as they were
        self._lookout, self._gauge = OrphanMonitor(), MachineMonitor(gpu=runtime.gpu)
        self._pictured = Path()  #: the run whose pairs are shown
        self._doing = set[str]()  #: what threads beside do
        self._drawer = BackgroundLoop(_TICK, self._draw_now)
        self._turned = 0.0  #: when the pairs and nodes were drawn
        self._changing, self._drawing = threading.Lock(), threading.RLock()
        self._was_running = False
        self._watchers: list[Callable[[bool], None]] = []
        self.beside: list[widgets.Widget] = []  #: boxes that other cells show, freed with ours
        self.message = widgets.HTML()
        self.parts = {name: widgets.HTML() for name in _PARTS}
        self.budget = widgets.Text(placeholder="10 EUR, 3 h", layout=widgets.Layout(width="10em"))
        self.buttons = {
            "fit": _button("Plan for this budget:", self._guarded(self.fit)),
            "plan": _button("Plan", self._guarded(self.plan)),
            "start": _button("Start", self._guarded(self.start), style="primary"),
            "stop": _button("Stop", self._guarded(self.stop)),
            "down": _button("Tear down now", self._guarded(self.tear_down), style="danger"),
            "delete": _button("Delete them now", self._guarded(self.delete), style="danger"),
            "adopt": _button("Go on with them", self._guarded(self.adopt)),
            "mount": _button("Mount Drive", self._guarded(self.mount)),
        }
        self.buttons["start"].layout.width = self.buttons["fit"].layout.width = "auto"
        self._unsafe = widgets.Checkbox(description="show unsafe pictures", indent=False)
        self._unsafe.observe(lambda _: self._refresh(), names="value")
        self._fold = widgets.Accordion(children=[self.form.box], selected_index=0)
        self._fold.set_title(0, "settings")
        self.box = self._laid_out()
        self.form.greet()
        self.draw()

    @property
    def quote(self) -> Quote | None:
        """The plan that was drawn, if it is for exactly the settings and the token of now."""
        quote = self._quote
        try:
            return quote if quote and quote.holds(self.form.job(), self.form.token) else None
        except CahError:
            return None

    def plan(self) -> None:
        """Get the quote of the job in the background; nothing is created."""
        job, token = self.form.job(), self.form.token
        if not self.process.running():
            self._beside("plan", lambda: self._ask(job, token))

    def fit(self) -> None:
        """Choose the servers that the budget pays for, and show their plan."""
        budget, job, token = (
            parse_budget(self.budget.value),
            self.form.job(),
            self.form.require_token(),
        )

        def work() -> None:
            self._say("Asking the cloud for offers and prices …")
            for name, text in fit_to_budget(job, token, budget).items():
                self.form.fields[name].write(text)
            self._ask(self.form.job(), token)

        if not self.process.running():
            self._beside("plan", work)

    def _ask(self, job: Job, token: str) -> None:
        remember_job(job)
        if job.place.has_servers:
            from cahlib.run.scrapers import watchdog_config

            self._say("Asking the cloud for offers and prices …")
            watchdog_config(
                job, self._environment.get(WATCHDOG_VARIABLE, ""), token
            )  # before an order
        if token:
            self._beside("look", lambda: self._lookout.look(self.process, token))
        self._quote = make_quote(job, token)
        changed = "" if self.quote else "The settings have changed since; press Plan again."
        self._say(changed, bad=True)

    def start(self) -> None:
        """Start the run; servers are ordered only after a plan for these settings was shown."""
        job = self.form.job()
        if self._doing - _QUIETLY or self.process.running():
            return  # a second click, or one that waited while the kernel was busy
        if job.place.has_servers and self.quote is None:
            raise RunError("Press Plan first: servers are ordered at a price that you have seen.")
        self.begin(job)

    def begin(self, job: Job) -> None:
        """Start the run of a job, or find it if it is going on."""
        require_internet(self.runtime)
        quote, self.process = self.quote, RunProcess.of(job)
        servers = quote.servers if quote else job.place.swarm or job.place.cores
        self.process.start(job, self.form.token, self._environment, servers=servers)
        self._quote, self._lookout.found = None, ()
        remember_job(job)
        self._refresh()

    def stop(self) -> None:
        """Ask the run to end cleanly; a second click changes nothing."""
        self.process.stop()
        self._refresh()

    def tear_down(self) -> None:
        """End the run at once and delete its servers, in the background."""
        process, token = self.process, self.form.token
        self._beside("down", lambda: process.tear_down(token, self._say))

    def delete(self) -> None:
        """Delete orphaned servers."""
        process, token = self.process, self.form.token

        def work() -> None:
            self._say("Deleting them …")
            self._lookout.delete(process, token)
            self._say("They are gone: the cloud lists none of them.")

        self._beside("delete", work)

    def adopt(self) -> None:
        """Continue with this run's existing servers; no others are ordered."""
        own = self._lookout.own(self.process)
        if own and not self._doing - _QUIETLY:
            self.form.fields["cores"].write("0")
            self.form.fields["swarm"].write(str(own))
            self.begin(self.form.job())

    def mount(self) -> None:
        """Mount Drive on Colab, where the dataset survives the runtime."""
        self.form.fields["output"].write(mount_drive())

    def watch(self) -> None:
        """Start updating the panel in a thread, and look up which crawls there are."""
        self._beside("crawls", lambda: self.form.suggest_crawls(index.crawl_names()))
        self._drawer.start()

    def close(self) -> None:
        """Stop updating and close all widgets; the run continues."""
        self._drawer.stop(timeout=0)
        with self._drawing:
            for box in (self.box, *self.beside):
                close_widgets(box)

    def on_drawing(self, watcher: Callable[[bool], None]) -> None:
        """Tell now, and at each drawing, whether the run is going on; never two at once."""
        with self._drawing:
            self._watchers.append(watcher)
            watcher(self.process.running())

    def follow(self, *, always: bool = True) -> None:
        """Execute while the run goes on, so that the session is not ended as idle.

        Interrupt the cell to do something else; the run goes on. Unless ``always``, only where
        sessions are ended when no cell executes.
        """
        if not self.runtime.widgets or not (always or self.runtime.is_idle_soon):
            return
        if not follow_run(lambda: self.process.running(), wait=self.runtime.follow_seconds):
            print("No run is in progress. Run this cell after Start, to keep the session awake.")

    def draw(self, *, turned: bool = True) -> None:
        """Draw what is known now; pairs and nodes only if ``turned``."""
        with self._drawing:
            process = self.process  # another click may put another in its place
            known = self.known(process)
            shown = state.panel_state(known)
            machine = self._gauge.read(process.home.parent)
            self._put("head", view.head_html(shown, known.live, machine, running=known.running))
            self._put("charts", view.charts_html(known.live, running=known.running))
            self._put("losses", view.drops_html(known.live))
            self._put("log", view.log_html(process.log_lines()))
            if turned or known.running != self._was_running:
                there = known.live if known.running else {}
                self._put("nodes", view.nodes_html(there, int(time.time() / _TURN)))
                self._show_gallery(process, known.live)
            unsafe = any(pair["clear"] for pair in known.live.get("latest") or ())
            self._unsafe.layout.display = None if unsafe else "none"
            self._put("banner", view.message_html(shown.banner, bad=True) if shown.banner else "")
            self._show_plan()
            self._allow(shown, running=known.running)
            self._was_running = known.running
            for each in self._watchers:
                each(known.running)
        token = self.form.token
        if self.runtime.widgets and self._lookout.is_due(process, token, running=known.running):
            self._beside("look", lambda: self._lookout.look(process, token))

    def _show_gallery(self, process: RunProcess, live: Mapping[str, Any]) -> None:
        """Draw the latest pairs; those of a run that has ended, and tells of none, stay."""
        html = view.gallery_html(live, clear=self._unsafe.value)
        if html or process.home != self._pictured:
            self._put("gallery", html)
            self._pictured = process.home

    def known(self, process: RunProcess) -> state.RunInfo:
        """Return what is known of a run, and of what is asked for."""
        doing, quote = self._doing.copy(), self.quote
        return state.RunInfo(
            running=process.running(),
            live=process.live(),
            launched=process.launched,
            asked=process.asked,
            servers=process.servers,
            log_lines=process.log_lines(),
            busy=next((each for each in ("down", "delete", "plan") if each in doing), ""),
            wanted=self.form.wants_servers,
            order=quote.order if quote else "",
            planned=quote is not None,
            left=process.has_servers,
            orphans=[str(each) for each in self._lookout.found],
            own=self._lookout.own(process),
            vanishing=bool(self._warning("output", self.form.fields["output"].text)),
            unasked=self._lookout.trouble,
            token=bool(self.form.token),
        )

    def _show_plan(self) -> None:
        quote = self.quote
        self._put("plan", view.plan_html(quote.table, quote.sentences) if quote else "")

    def _allow(self, shown: state.PanelState, *, running: bool) -> None:
        """Let be clicked what can be done now; the settings of a run that goes on are folded."""
        if running and not self._was_running:
            self._fold.selected_index = None
        for name, button in self.buttons.items():
            button.disabled = name not in shown.allowed
            if name in _SHOWN:
                button.layout.display = None if name in shown.allowed else "none"
        self.buttons["start"].description = shown.start
        self.form.freeze(not shown.settings)

    def _put(self, name: str, html: str) -> None:
        if self.parts[name].value != html:
            self.parts[name].value = html

    def _refresh(self) -> None:
        """Have everything drawn now, by the thread that draws; without one, here."""
        self._turned = 0.0
        if self._drawer.is_running():
            self._drawer.wake()
        else:
            self.draw()

    def _draw_now(self) -> None:
        turn = time.monotonic() - self._turned >= _TURN
        if turn:
            self._turned = time.monotonic()
        self._attempt(partial(self.draw, turned=turn))

    def _beside(self, what: str, work: Callable[[], None]) -> None:
        """Do something in a thread; a click while it is being done is one too many."""
        with self._changing:
            if what in self._doing:
                return
            self._doing.add(what)

        def act() -> None:
            try:
                self._attempt(work)  # what nobody clicked clears no message
            finally:
                self._doing.discard(what)
                self._refresh()

        threading.Thread(target=act, daemon=True).start()
        self._refresh()

    def _laid_out(self) -> widgets.VBox:
        terms = " ".join(filter(None, (self.runtime.terms, self.runtime.advice)))
        return widgets.VBox(
            [
                widgets.HTML(view.note_html(terms)),
                self.parts["banner"],
                self._row(*_RESCUE),
                self._fold,
                self._row("mount", "plan", "start", "stop", "down", self._row("fit", self.budget)),
                self.message,
                *(self.parts[name] for name in ("plan", "head", "charts", "nodes", "losses")),
                self._unsafe,
                *(self.parts[name] for name in ("gallery", "log")),
            ]
        )

    def _warning(self, name: str, text: str) -> str:
        return self.runtime.warning(text) if name == "output" else ""

    def _row(self, *parts: Any) -> widgets.HBox:
        """Return buttons, by their names, and other widgets beside each other."""
        row = [self.buttons[each] if isinstance(each, str) else each for each in parts]
        return widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap"))

    def _changed(self) -> None:
        """Something else was typed: the plan holds no more, and the dataset may be another."""
        if not self.process.running():
            self.process = RunProcess(self._home())
        self._refresh()

    def _home(self) -> Path:
        return RunDirectory(
            Output(output=self.form.fields["output"].text.strip() or "dataset").folder
        ).path

    def _say(self, sentence: str, *, bad: bool = False) -> None:
        self.message.value = view.message_html(sentence, bad=bad)

    def _guarded(self, action: Callable[[], None]) -> Callable[..., None]:
        """Return an action that shows its errors, beside the field they name or below the form."""

        def clicked(*_: Any) -> None:
            self._say("")
            self._attempt(action)

        return clicked

    def _attempt(self, action: Callable[[], None]) -> None:
        """Call an action and show its error, which must not end the panel."""
        try:
            try:
                action()
            except ModuleNotFoundError as error:
                raise missing_library_error(error, "gpu") from error
        except CahError as error:
            self.form.blame(error)
            self._say(str(error), bad=True)  # too: the field may be folded away
        except Exception as error:  # noqa: BLE001 - guards one click or drawing: its error is shown
            _LOG.error("an error in the notebook", exc_info=error)
            self._say(f"A bug in cahlib: {type(error).__name__}: {error}", bad=True)


def _button(title: str, clicked: Callable[..., None], *, style: str = "") -> widgets.Button:
    button = widgets.Button(description=title, button_style=style)
    button.on_click(clicked)
    return button

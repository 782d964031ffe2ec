"""The form: a field for each setting of a `Job`, checked as one types, and the token beside them.

What is typed becomes a Job as on the command line, with the same sentences. The token is taken out
of its field at once, so that no notebook is saved with it. It does not know what a run is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

import ipywidgets as widgets

from cahlib.core import requirements
from cahlib.core.config import Job, settings
from cahlib.core.errors import CahError, ConfigError
from cahlib.core.presets import PRESETS
from cahlib.core.settings import Setting
from cahlib.notebook.inputs import Slider, WidgetFactory, input_for, label
from cahlib.run.environment import build_job

#: The fields that are always shown; the others are folded away.
FIRST_FIELDS = (
    "nickname contact crawl shards swarm max_cost hours preset threshold output forms tracker"
).split()

#: The required fields; with a tracker, the crawl is not.
_REQUIRED = {"nickname", "contact", "crawl"}

_FOLDS = {
    "crawl": "more on what is read",
    "download": "which images are fetched, and how",
    "judge": "more on what belongs together",
    "output": "more on where the dataset goes",
    "place": "more on where and how long",
}

_NOTE = {"flex": "1 1 16em", "min_width": "0", "margin": "0 0 0 .8em"}


class Field:
    """A setting's input with its sentence: help, or what is wrong."""

    def __init__(
        self, setting: Setting, text: str, changed: Callable[[str], None], shared: WidgetFactory
    ) -> None:
        self.setting = setting
        mark = " *" if setting.name in _REQUIRED else ""
        self.input = input_for(setting, label(setting.name) + mark, shared)
        self.widget = self.input.widget
        self.note = shared.make(widgets.HTML, layout=_NOTE)
        self.row = _row(shared, self.widget, self.note)
        self.write(text)
        self.say("")
        self.input.on_change(lambda: changed(setting.name))

    @property
    def text(self) -> str:
        """The value, as on the command line."""
        return self.input.text

    def write(self, text: str) -> None:
        """Put a text into the field."""
        self.input.write(text)

    def value(self) -> Any:
        """Return the value of the text; raise ConfigError."""
        value = self.setting.parse(self.text)
        self.setting.check(value)
        return value

    def say(self, error: str) -> None:
        """Show what is wrong, or the help."""
        help = self.input.meaning or self.setting.option.help
        self.note.value = _note(self.setting.name, error, help)


class SettingsForm:
    """All fields; `job` is what they say together."""

    def __init__(
        self,
        given: Mapping[str, Any],
        *,
        token: tuple[str, str] = ("", ""),
        changed: Callable[[], None] = lambda: None,
        warning: Callable[[str, str], str] = lambda name, text: "",
    ) -> None:
        """``given`` are values by field; ``token`` is one that was found, and where.

        ``warning`` says of a field's name and text what is unwise about it.
        """
        self._changed, self._warning = changed, warning
        self._quiet = False
        self._typed = set[str]()  #: fields that somebody has changed
        self._token, self._found = token
        shared = WidgetFactory()
        self.fields = {
            setting.name: Field(setting, format_value(setting, given), self._check, shared)
            for setting in settings()
        }
        self.password = widgets.Password(
            description="Hetzner token",
            continuous_update=False,
            style={"description_width": "10.5em"},
            layout=self.fields["nickname"].widget.layout,
        )
        self.token_note = shared.make(widgets.HTML)
        self.password.observe(self._take_token, names="value")
        first = [self.fields[name].row for name in FIRST_FIELDS]
        first.insert(FIRST_FIELDS.index("swarm") + 1, _row(shared, self.password, self.token_note))
        self._advanced = self._folded()
        self.box = widgets.VBox([*first, self._advanced])
        self._follow_preset()
        self._show_token()

    @property
    def token(self) -> str:
        return self._token

    @property
    def wants_servers(self) -> bool:
        """Return whether the form asks for servers, as far as it can be read."""
        return any(self.fields[name].text.strip() not in ("", "0") for name in ("swarm", "cores"))

    def job(self) -> Job:
        """Return the Job; raise ConfigError with the same message as in a terminal."""
        job = build_job({name: field.text for name, field in self.fields.items()}, {})
        requirements.require_nickname(job)
        requirements.require_contact(job)
        if not job.place.tracker:
            requirements.require_source(job.crawl)
        if job.place.has_servers:
            self.require_token()
        return job

    def require_token(self) -> str:
        """Return the token; raises ConfigError if there is none."""
        if not self._token:
            raise ConfigError(
                "token: servers need a Hetzner token with read and write permission; create one in "
                "its console (Security → API tokens)."
            )
        return self._token

    def fill(self, values: Mapping[str, Any]) -> None:
        """Put other values into the fields."""
        self._quiet = True
        for field in self.fields.values():
            field.write(format_value(field.setting, values))
        self._quiet = False
        self._check()

    def suggest_crawls(self, names: Sequence[str]) -> None:
        """Show which crawls can be picked."""
        self.fields["crawl"].input.suggest(names)  # type: ignore[attr-defined]

    def blame(self, error: CahError) -> None:
        """Show an error beside the field that it names, if it names one."""
        text = str(error)
        name = text.partition(":")[0]
        if name in self.fields:
            self.fields[name].say(text)
        elif "token" in text:
            self._show_token(text)

    def freeze(self, frozen: bool) -> None:
        """Let nothing be changed while a run is going on, or let it."""
        for field in self.fields.values():
            field.input.freeze(frozen)

    def check(self) -> bool:
        """Show what is wrong beside the fields; True if nothing is."""
        wrong = self._check_each()
        if wrong:
            return False
        try:
            self.job()
        except ConfigError as refused:
            self.blame(refused)
            return False
        return True

    def greet(self) -> None:
        """Show mistakes before anything was typed, but not that fields are empty."""
        self._check_each()

    def _check_each(self) -> int:
        wrong = 0
        for name, field in self.fields.items():
            error = ""
            try:
                field.value()
            except ConfigError as refused:
                error, wrong = str(refused), wrong + 1
            field.say(error or self._warning(name, field.text) or _driver(name, field.text))
        self._show_token()
        return wrong

    def _check(self, name: str = "") -> None:
        """Check while somebody types; untouched empty fields are not reported yet."""
        if self._quiet:
            return
        self._typed.add(name)
        if name == "preset":
            self._follow_preset()
        if not self._check_each():
            try:
                self.job()
            except ConfigError as refused:
                if str(refused).partition(":")[0] in {*self._typed, "token"}:
                    self.blame(refused)
        self._changed()

    def _follow_preset(self) -> None:
        slider = self.fields["threshold"].input
        if isinstance(slider, Slider) and (preset := PRESETS.get(self.fields["preset"].text)):
            slider.follow(preset.threshold)

    def _folded(self) -> widgets.Accordion:
        inner, titles = [], []
        for group, title in _FOLDS.items():
            rows = [
                field.row
                for name, field in self.fields.items()
                if field.setting.group == group and name not in FIRST_FIELDS
            ]
            inner.append(widgets.VBox(rows))
            titles.append(title)
        folds = widgets.Accordion(children=inner, selected_index=None)
        for number, title in enumerate(titles):
            folds.set_title(number, title)
        advanced = widgets.Accordion(children=[folds], selected_index=None)
        advanced.set_title(0, "advanced")
        return advanced

    def _take_token(self, change: Mapping[str, Any]) -> None:
        if not change["new"]:
            return
        if token := change["new"].strip():  # blanks alone are none, and replace none
            self._token, self._found = token, "this field; stored nowhere"
        self.password.value = ""
        self._check("token")

    def _show_token(self, error: str = "") -> None:
        self.password.placeholder = f"found ({self._found})" if self._token else ""
        shown = f"found in {self._found}" if self._token else "only servers need one"
        self.token_note.value = _note("token", error, shown)


def format_value(setting: Setting, values: Mapping[str, Any]) -> str:
    """Return a setting's value, or its default, as a person would type it."""
    value = values.get(setting.name, setting.default)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(value)
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return "" if value is None else str(value)


def _driver(name: str, text: str) -> str:
    """Return which package a URL needs that is not installed; "" if none."""
    scheme, mark, _ = text.strip().partition("://")
    if name not in ("output", "staging") or not mark:
        return ""
    from fsspec.registry import known_implementations

    known = known_implementations.get(scheme.lower())
    if known is None:
        return f"{scheme}:// is not a storage that fsspec knows; write s3://…, gs://… or file:///…."
    package = str(known["class"]).partition(".")[0]
    if find_spec(package) is not None:
        return ""
    return f"{scheme}:// needs a package: type %pip install {package} in a cell."


def _row(shared: WidgetFactory, widget: Any, note: Any) -> Any:
    return shared.make(widgets.HBox, layout={"flex_flow": "row wrap"}, children=[widget, note])


def _note(name: str, error: str, help: str) -> str:
    told = error.removeprefix(f"{name}: ")
    look, text = ("bad", told[:1].upper() + told[1:]) if error else ("dim", help)
    return f'<div class="cah note"><span class="{look}">{escape(text)}</span></div>'

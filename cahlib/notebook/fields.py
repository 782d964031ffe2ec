"""The form: a field for each setting of a `Job`, checked as one types, and the token beside them.

What is typed becomes a Job as on the command line, with the same sentences. The token is taken out
of its field at once, so that no notebook is saved with it. It does not know what a run is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from cahlib import needs
from cahlib.cli import job_from
from cahlib.config import Job, settings
from cahlib.errors import CahError, ConfigError
from cahlib.settings import Setting

#: What every run asks for; the rest is folded away.
_FIRST = (
    "nickname contact crawl shards swarm max_cost hours preset threshold output forms tracker"
).split()

_FOLDS = {
    "crawl": "more on what is read",
    "download": "which images are fetched, and how",
    "judge": "more on what belongs together",
    "output": "more on where the dataset goes",
    "place": "more on where and how long",
}

_RED = "color:#c62828"


class Field:
    """A setting's widget with its sentence: help, or what is wrong."""

    def __init__(self, setting: Setting, text: str, changed: Callable[[], None]) -> None:
        self.setting = setting
        style, layout = {"description_width": "8.5em"}, widgets.Layout(width="26em")
        common: Any = {"description": _label(setting.name), "style": style, "layout": layout}
        self.widget: Any
        if setting.type is bool:
            self.widget = widgets.Dropdown(options=("no", "yes"), **common)
        elif setting.option.choices and setting.type is str:
            self.widget = widgets.Dropdown(options=setting.option.choices, **common)
        else:
            self.widget = widgets.Text(**common)
        self.note = widgets.HTML(layout=widgets.Layout(flex="1 1 18em", margin="0 0 0 .8em"))
        self.row = _row(self.widget, self.note)
        self.write(text)
        self.say("")
        self.widget.observe(lambda _: changed(), names="value")

    @property
    def text(self) -> str:
        return str(self.widget.value)

    def write(self, text: str) -> None:
        """Put a text into the field; one that is no choice becomes the first line of them."""
        if isinstance(self.widget, widgets.Dropdown) and text not in self.widget.options:
            self.widget.options = (text, *self.widget.options)
        self.widget.value = text

    def value(self) -> Any:
        """What the text means; raises ConfigError."""
        value = self.setting.parse(self.text)
        self.setting.check(value)
        return value

    def say(self, error: str) -> None:
        """Show what is wrong, or the help."""
        self.note.value = _note(error, self.setting.option.help)


class Form:
    """All fields; `job` is what they say together."""

    def __init__(
        self,
        given: Mapping[str, Any],
        *,
        token: tuple[str, str] = ("", ""),
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``given`` are values by field; ``token`` is one that was found, and where."""
        self._changed, self._quiet = changed, False
        self._token, self._found = token
        self.fields = {
            setting.name: Field(setting, written(setting, given), self._check)
            for setting in settings()
        }
        self.password = widgets.Password(
            description="Hetzner token",
            continuous_update=False,
            style={"description_width": "8.5em"},
            layout=widgets.Layout(width="26em"),
        )
        self.token_note = widgets.HTML(layout=widgets.Layout(flex="1 1 18em", margin="0 0 0 .8em"))
        self.password.observe(self._take_token, names="value")
        first = [self.fields[name].row for name in _FIRST]
        first.insert(_FIRST.index("swarm") + 1, _row(self.password, self.token_note))
        self._advanced = self._folded()
        self.box = widgets.VBox([*first, self._advanced])
        self._show_token()

    @property
    def token(self) -> str:
        return self._token

    @property
    def wants_servers(self) -> bool:
        """Whether the form asks for servers, as far as it can be read."""
        return any(self.fields[name].text.strip() not in ("", "0") for name in ("swarm", "cores"))

    def job(self) -> Job:
        """The Job; raises ConfigError with the sentence that a terminal would show."""
        job = job_from({name: field.text for name, field in self.fields.items()}, {})
        needs.named(job)
        needs.introduced(job)
        if not job.place.tracker:
            needs.reading(job.crawl)
        if job.place.has_servers and not self._token:
            raise ConfigError(
                "token: servers need a Hetzner token with read and write permission; make one in "
                "its console (Security → API tokens)."
            )
        return job

    def fill(self, values: Mapping[str, Any]) -> None:
        """Put other values into the fields."""
        self._quiet = True
        for field in self.fields.values():
            field.write(written(field.setting, values))
        self._quiet = False
        self._check()

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
            field.widget.disabled = frozen

    def check(self) -> bool:
        """Show what is wrong beside the fields; True if nothing is."""
        wrong = 0
        for field in self.fields.values():
            error = ""
            try:
                field.value()
            except ConfigError as refused:
                error, wrong = str(refused), wrong + 1
            field.say(error)
        self._show_token()
        if wrong:
            return False
        try:
            self.job()
        except ConfigError as refused:
            self.blame(refused)
            return False
        return True

    def _check(self) -> None:
        if not self._quiet:
            self.check()
            self._changed()

    def _folded(self) -> widgets.Accordion:
        inner, titles = [], []
        for group, title in _FOLDS.items():
            rows = [
                field.row
                for name, field in self.fields.items()
                if field.setting.group == group and name not in _FIRST
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
        self._token, self._found = change["new"].strip(), "this field; stored nowhere"
        self.password.value = ""
        self._check()

    def _show_token(self, error: str = "") -> None:
        self.password.placeholder = f"found ({self._found})" if self._token else ""
        shown = f"found in {self._found}" if self._token else "only servers need one"
        self.token_note.value = _note(error, shown)


def written(setting: Setting, values: Mapping[str, Any]) -> str:
    """A setting's value among others, or its default, as a person would write it."""
    value = values.get(setting.name, setting.default)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def _row(widget: Any, note: Any) -> widgets.HBox:
    return widgets.HBox([widget, note], layout=widgets.Layout(flex_flow="row wrap"))


def _label(name: str) -> str:
    return name.replace("_", " ")


def _note(error: str, help: str) -> str:
    look, text = (_RED, error) if error else ("opacity:.65", help)
    return (
        f'<span style="{look};line-height:1.35;display:block;padding:.3em 0">{escape(text)}</span>'
    )

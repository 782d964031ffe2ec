"""Inputs: a widget for each kind of setting, whose value is text as in the terminal.

Widgets of one kind share their layout and style: each is a model of its own in a saved notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from cahlib.core.presets import PRESETS
from cahlib.core.settings import Setting

#: What people call settings whose names do not say it.
_LABELS = {
    "swarm": "Servers",
    "cores": "Cores instead",
    "max_cost": "Cost at most (EUR)",
    "hours": "Hours at most",
    "preset": "Model",
    "model": "Another model",
    "pretrained": "Its weights",
    "threshold": "Least similarity",
    "forms": "Files to write",
    "og_images": "og:image too",
    "per_host": "At once per domain",
    "per_second": "Requests a second",
    "per_domain": "Links a domain",
    "base_url": "Crawls' server",
    "min_text": "Shortest text",
    "max_text": "Longest text",
    "max_url": "Longest address",
    "engine": "Dask cluster",
    "seed": "Random seed",
    "personal": "Personal data",
    "blocked_urls": "Blocked URLs",
    "max_failures": "Failures in a row",
    "offline_minutes": "Minutes offline",
    "max_bytes": "Largest file",
    "min_bytes": "Smallest file",
    "min_side": "Shortest side",
    "max_pixels": "Most pixels",
    "max_aspect": "Aspect ratio",
    "consent": "Opt-outs",
    "replay": "Replay from",
    "safety": "Safety categories",
    "nsfw_open": "Open NSFW score",
    "harm_looks": "Known harm by looks",
    "harm_distance": "Harm: bits apart",
    "distance": "Near: bits apart",
    "batch": "Images at once",
    "device": "Run the model on",
    "keep_local": "Keep a local copy",
    "workers": "Scrapers here",
    "attempts": "Tries of a shard",
    "shard_minutes": "Minutes for a shard",
    "watchdog_minutes": "Minutes of silence",
    "wheelhouse": "Folder of wheels",
    "staging": "Shared storage",
}

#: The choices of settings that have several at once, as people write them.
_CHOICES = {
    "images": "images as they are",
    "images:jpg": "images as JPEG",
    "embeddings": "embeddings",
    "tfrecords": "TFRecords",
}

_WIDTHS = {"width": "29em", "max_width": "100%", "margin": "2px 0"}
_STYLE = {"description_width": "10.5em"}


def label(name: str) -> str:
    """Return what people call a setting."""
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


class WidgetFactory:
    """Makes widgets that share what their kind can share."""

    def __init__(self) -> None:
        self._first: dict[Any, Any] = {}

    def make(self, kind: Any, *, style: Any = None, layout: Any = None, **values: Any) -> Any:
        """Return a widget of a kind, with its style and layout those of the first such one."""
        if first := self._first.get(kind):
            common = {"layout": first.layout, "style": getattr(first, "style", None)}
        else:
            common = {"layout": widgets.Layout(**(layout or {})), "style": style}
        if common["style"] is None:  # some kinds have none, in ipywidgets 7 more than in 8
            del common["style"]
        made = kind(**common, **values)
        self._first.setdefault(kind, made)
        return made


def close_widgets(widget: Any) -> None:
    """Close a widget and all that it holds, layouts and styles as well."""
    for each in _within(widget):
        each.close()


def accept_messages(widget: Any) -> None:
    """Have a widget, and all that it holds, hear every page that shows it.

    ipykernel 7.4 brings a page's words to the subshell in which the widget spoke last. A page that
    is loaded anew has deleted that one, so that they are lost; or it is the main shell, where they
    wait while a cell executes.
    """
    for each in _within(widget):
        each.comm._reply_subshell_for = None


def _within(widget: Any) -> list[Any]:
    """Return a widget and all that it holds, each once, as far as it is open."""
    left, found = [widget], dict[str, Any]()
    while left:
        each = left.pop()
        if each.comm is None or each.model_id in found:
            continue
        found[each.model_id] = each
        for name in each.keys:
            held = getattr(each, name)
            several = held if isinstance(held, tuple | list) else (held,)
            left += [one for one in several if isinstance(one, widgets.Widget)]
    return [*found.values()]


class Input:
    """A text field, the kind for all that no other fits."""

    kind: Any = widgets.Text

    def __init__(self, setting: Setting, name: str, shared: WidgetFactory) -> None:
        self.widget = shared.make(
            self.kind, style=_STYLE, layout=_WIDTHS, description=name, **self._more(setting)
        )

    def _more(self, setting: Setting) -> dict[str, Any]:
        return {}

    @property
    def text(self) -> str:
        """The value, as on the command line."""
        return str(self.widget.value)

    @property
    def meaning(self) -> str:
        """Return the note beside it that replaces the terminal's help; "" if there is none."""
        return ""

    def write(self, text: str) -> None:
        """Put a value in."""
        self.widget.value = text

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call when somebody, or the code, has changed the value."""
        self.widget.observe(lambda _: changed(), names="value")

    def freeze(self, frozen: bool) -> None:
        """Let nothing be changed, or let it."""
        self.widget.disabled = frozen


class Picker(Input):
    """A text field with suggestions."""

    kind = widgets.Combobox

    def _more(self, setting: Setting) -> dict[str, Any]:
        return {"ensure_option": False}

    def suggest(self, options: Sequence[str]) -> None:
        """Show what can be picked; anything else can still be typed."""
        self.widget.options = tuple(options)


class Choice(Input):
    """One of several; a text that is none of them becomes the first one."""

    kind = widgets.Dropdown

    def _more(self, setting: Setting) -> dict[str, Any]:
        if setting.type is bool:
            return {"options": ("no", "yes")}
        return {"options": [(_described(each), each) for each in setting.option.choices]}

    @property
    def meaning(self) -> str:
        return _described(self.text) if self.text in PRESETS else ""

    def write(self, text: str) -> None:
        options = [
            each if isinstance(each, tuple) else (each, each) for each in self.widget.options
        ]
        if text not in (value for _, value in options):
            self.widget.options = [(text, text), *options]
        self.widget.value = text


class Slider(Input):
    """The least similarity: the preset's until somebody moves it."""

    kind = widgets.FloatSlider

    def __init__(self, setting: Setting, name: str, shared: WidgetFactory) -> None:
        super().__init__(setting, name, shared)
        self._usual, self._odd, self._own = 0.0, "", False
        self._writing = False
        self._changed: Callable[[], None] = _nobody
        self.widget.observe(lambda _: self._moved(), names="value")

    def _more(self, setting: Setting) -> dict[str, Any]:
        return {"min": 0.0, "max": 0.5, "step": 0.005, "readout_format": ".3f"}

    @property
    def text(self) -> str:
        if self._odd:
            return self._odd
        return f"{self.widget.value:g}" if self._own else ""

    def write(self, text: str) -> None:
        try:
            value = float(text) if text else self._usual
            odd = "" if -1 <= value <= 1 else text
        except ValueError:
            value, odd = self._usual, text
        changed = (odd, bool(text)) != (self._odd, self._own)
        self._odd, self._own = odd, bool(text)
        self._show(self._usual if odd else value)
        if changed:
            self._changed()

    def follow(self, usual: float) -> None:
        """Show the value of a preset, unless there is one of the user's own."""
        self._usual = usual
        if not self._own:
            self._show(usual)

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def _show(self, value: float) -> None:
        self._writing = True
        self.widget.min, self.widget.max = min(0.0, value), max(0.5, value)
        self.widget.value = value
        self._writing = False

    def _moved(self) -> None:
        if not self._writing:
            self._odd, self._own = "", True
            self._changed()


class Boxes(Input):
    """Some of several, a checkbox each; one that is unknown gets its own."""

    meaning = "what to write beside the metadata"

    def __init__(self, setting: Setting, name: str, shared: WidgetFactory) -> None:
        self._shared, self._changed = shared, _nobody
        self._boxes: dict[str, Any] = {}
        # a label of ipywidgets 7 cannot be moved to the right
        title = widgets.HTML(
            f'<div style="text-align:right">{escape(name)}</div>',
            layout=widgets.Layout(width=_STYLE["description_width"]),
        )
        self._column = widgets.VBox(layout=widgets.Layout(margin="0 0 0 6px"))
        self.widget = widgets.HBox(
            [title, self._column], layout=widgets.Layout(flex_flow="row wrap", **_WIDTHS)
        )
        for each in setting.option.choices:
            self._add(each)

    @property
    def text(self) -> str:
        return ",".join(name for name, box in self._boxes.items() if box.value)

    def write(self, text: str) -> None:
        wanted = [each.strip() for each in text.split(",") if each.strip()]
        for each in wanted:
            if each not in self._boxes:
                self._add(each)
        changed, self._changed = self._changed, _nobody
        for name, box in self._boxes.items():
            box.value = name in wanted
        self._changed = changed
        changed()

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def freeze(self, frozen: bool) -> None:
        for box in self._boxes.values():
            box.disabled = frozen

    def _add(self, name: str) -> None:
        words = _CHOICES.get(name, name)
        box = self._shared.make(
            widgets.Checkbox, layout={"width": "auto"}, description=words, indent=False
        )
        box.observe(lambda _: self._changed(), names="value")
        accept_messages(box)
        self._boxes[name] = box
        self._column.children = (*self._column.children, box)


def input_for(setting: Setting, name: str, shared: WidgetFactory) -> Input:
    """Return the input that fits a setting."""
    if setting.name == "threshold":
        kind: type[Input] = Slider
    elif setting.name == "crawl":
        kind = Picker
    elif setting.option.choices and setting.type not in (str, bool):
        kind = Boxes
    else:
        kind = Choice if setting.option.choices or setting.type is bool else Input
    return kind(setting, name, shared)


def _nobody() -> None:
    """Hear of no change."""


def _described(choice: str) -> str:
    """Return a choice with what it means, if that is known."""
    if preset := PRESETS.get(choice):
        return f"{choice}: {preset.model}, {preset.threshold:.2f} ({preset.why})"
    return choice

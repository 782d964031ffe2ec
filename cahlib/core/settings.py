"""The declaration of a setting: its help, type and bounds, and the messages that reject a value.

Which settings there are is in `cahlib.core.config`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from cahlib.core.errors import ConfigError

#: The titles of the topics, in the order in which help and form show them. A setting without a
#: topic of its own has that of the part of a Job that holds it.
TOPICS = {
    "crawl": "what to read",
    "text": "which links and captions to keep",
    "download": "fetching images",
    "image": "which images to keep",
    "judge": "model and thresholds",
    "output": "the dataset",
    "tracker": "working with others",
    "servers": "servers at Hetzner Cloud",
    "cluster": "your own Dask cluster",
    "place": "this machine, and limits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The help and the bounds of a field of `Job`."""

    help: str
    #: a key of `TOPICS`, if not the name of the part of a Job that holds the field
    topic: str = ""
    #: the commands whose short help shows it, separated by spaces; elsewhere it is advanced
    first: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    #: may change between two launches of a run without changing what the dataset means
    free: bool = False
    #: names files of this machine, compared by content and not by path
    file: bool = False
    #: names blocklists, which may grow between two launches and are compared by name
    grows: bool = False
    #: names tables of this machine, of which jobs read parts; takes several arguments
    table: bool = False


def option(default: Any, help: str, **limits: Any) -> Any:
    """Return a dataclass field that carries an `Option`."""
    return field(default=default, metadata={"option": Option(help=help, **limits)})


class Checked:
    """Checks the fields of a dataclass against their options when an instance is created."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for setting in settings_of(type(self), ""):
            setting.check(getattr(self, setting.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field of a Job or of one of its parts."""

    group: str  #: the Job's part that holds it, "" for the Job itself
    name: str
    type: Any
    default: Any
    option: Option

    @property
    def topic(self) -> str:
        """The topic of the setting: a key of `TOPICS`."""
        return self.option.topic or self.group

    @property
    def flag(self) -> str:
        """Return the option of the command line."""
        return "--" + self.name.replace("_", "-")

    def of(self, job: Any) -> Any:
        """Return this setting's value in a Job."""
        return getattr(getattr(job, self.group) if self.group else job, self.name)

    def parse(self, text: str) -> Any:
        """Return the value of a text that a person typed; raise ConfigError."""
        text = text.strip()
        if self.type is bool:
            if text.lower() in ("1", "true", "yes", "on"):
                return True
            if text.lower() in ("0", "false", "no", "off", ""):
                return False
            raise ConfigError(f"{self.name}: {text!r} is not valid; give yes or no.")
        if self.type in (int, float):
            if not text and self.default is None:
                return None
            try:
                return self.type(text)
            except ValueError:
                raise self._not_a_kind(repr(text)) from None
        if self.type is str:
            return text
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def check(self, value: Any) -> None:
        """Raise ConfigError if a value has the wrong type, is out of bounds or not a choice."""
        if value is None and self.default is None:
            return
        if not self._is_of_type(value):
            raise self._not_a_kind(str(value))
        least, most, choices = self.option.least, self.option.most, self.option.choices
        if (least is not None and value < least) or (most is not None and value > most):
            shown = f"{value:g}" if abs(value) < 1e300 else "that number"  # no float is so large
            raise ConfigError(f"{self.name}: {shown} is not allowed; give a number{self.bounds()}.")
        for each in value if isinstance(value, tuple) else (value,):
            if choices and each not in choices:
                raise ConfigError(
                    f"{self.name}: {each!r} is not known; choose from {', '.join(choices)}."
                )

    def _is_of_type(self, value: Any) -> bool:
        if self.type is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and abs(value) <= sys.float_info.max  # excludes NaN and infinity
        if self.type in (bool, int, str):
            return type(value) is self.type
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)

    def _not_a_kind(self, shown: str) -> ConfigError:
        kinds = {int: "whole number", float: "number", str: "text", bool: "yes or no"}
        kind = kinds.get(self.type, "list of texts")
        return ConfigError(f"{self.name}: {shown} is not a {kind}{self.bounds()}.")

    def bounds(self) -> str:
        """Return the bounds of a number, as a phrase after a noun; "" if there are none."""
        least, most = self.option.least, self.option.most
        if least is not None and most is not None:
            return f" from {least} to {most}"
        return "" if least is None else f" of at least {least}"


def settings_of(owner: Any, group: str) -> tuple[Setting, ...]:
    """Return the settings that a dataclass declares itself."""
    return _held(owner, group)


@cache  # used for every Job that is created
def _held(owner: Any, group: str) -> tuple[Setting, ...]:
    if not is_dataclass(owner):
        return ()
    types = get_type_hints(owner)
    return tuple(
        Setting(
            group=group,
            name=each.name,
            type={float | None: float, int | None: int}.get(types[each.name], types[each.name]),
            default=each.default,
            option=each.metadata["option"],
        )
        for each in fields(owner)
        if "option" in each.metadata
    )

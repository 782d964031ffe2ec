"""What a setting is: its help, its type and its bounds, and the sentences that refuse a value.

It does not know which settings there are: that is `cahlib.core.config`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from cahlib.core.errors import ConfigError

#: What settings are about, in the order in which help and form show them: the title of each topic.
#: A setting without a topic of its own has that of the part of a Job that holds it.
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
    """What a field of `Job` allows, and how it is explained."""

    help: str
    #: what it is about, if not what its part of a Job is about: a key of `TOPICS`
    topic: str = ""
    #: the commands that people need it for first, separated by spaces; elsewhere it is advanced
    first: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    #: may be changed between two launches of one run without changing what the dataset means
    free: bool = False
    #: names files of this machine, whose content counts and not where they lie
    file: bool = False
    #: those files say what to leave out: they may grow between two launches, and their names count
    grows: bool = False
    #: names tables of this machine, of which jobs read parts; several words of a command line
    table: bool = False


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field that carries an `Option`."""
    return field(default=default, metadata={"option": Option(help=help, **limits)})


class Checked:
    """Holds the fields of a dataclass to their options when a value is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for setting in held(type(self), ""):
            setting.check(getattr(self, setting.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field of a Job, wherever it lies in it."""

    group: str  #: the Job's part that holds it, "" for the Job itself
    name: str
    type: Any
    default: Any
    option: Option

    @property
    def topic(self) -> str:
        """What the setting is about: a key of `TOPICS`."""
        return self.option.topic or self.group

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return "--" + self.name.replace("_", "-")

    def of(self, job: Any) -> Any:
        """This setting's value in a Job."""
        return getattr(getattr(job, self.group) if self.group else job, self.name)

    def parse(self, text: str) -> Any:
        """The value that a person wrote; raises ConfigError with a sentence for people."""
        text = text.strip()
        if self.type is bool:
            if text.lower() in ("1", "true", "yes", "on"):
                return True
            if text.lower() in ("0", "false", "no", "off", ""):
                return False
            raise ConfigError(f"{self.name}: {text!r} is neither yes nor no.")
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
        """Hold a value to its type, bounds and choices; raises ConfigError."""
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
            return number and abs(value) <= sys.float_info.max  # neither is NaN, nor infinity
        if self.type in (bool, int, str):
            return type(value) is self.type
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)

    def _not_a_kind(self, shown: str) -> ConfigError:
        kinds = {int: "whole number", float: "number", str: "text", bool: "yes or no"}
        kind = kinds.get(self.type, "list of texts")
        return ConfigError(f"{self.name}: {shown} is not a {kind}{self.bounds()}.")

    def bounds(self) -> str:
        """What a number may be, to be said after a noun; "" if it may be any."""
        least, most = self.option.least, self.option.most
        if least is not None and most is not None:
            return f" from {least} to {most}"
        return "" if least is None else f" of at least {least}"


def held(owner: Any, group: str) -> tuple[Setting, ...]:
    """Return the settings that a dataclass itself holds."""
    return _held(owner, group)


@cache  # each Job that is made is checked by them
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

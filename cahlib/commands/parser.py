"""The parser of `cah`: help in two lengths, examples, and near names for mistakes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import Any, NoReturn

from cahlib.core.config import FORMER_NAMES, settings
from cahlib.core.settings import TOPICS, Setting

#: What argparse says when arguments are missing, before it names them.
_MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """The parser of `cah`, or of one of its commands."""

    def __init__(self, *, example: str = "", **options: Any) -> None:
        """Set up help; ``example`` is a working command line, shown at its end."""
        if example:
            options["epilog"] = "\n\n".join([f"example:\n  {example}", options.get("epilog", "")])
        super().__init__(add_help=False, formatter_class=_Formatter, **options)
        self.example = example
        self._advanced: list[argparse.Action] = []
        self.add_argument("-h", "--help", action="help", help="show this help and exit")
        self.set_defaults(example=example)

    def add_quiet(self) -> None:
        """Add `--quiet`."""
        self.add_argument(
            "-q", "--quiet", action="store_true", help="print results and errors only"
        )

    def add_dataset(
        self, what: str = "folder or URL of a dataset", *, dest: str = "dataset", nargs: Any = None
    ) -> None:
        """Add the argument DATASET, whose place is checked before the command does anything."""
        self.add_argument(dest, metavar="DATASET", help=what, nargs=nargs)
        self.set_defaults(dataset_argument=dest)

    def add_json(self) -> None:
        """Add `--json`."""
        self.add_argument("--json", action="store_true", help="print the result as a JSON object")

    def add_settings(
        self, command: str, takes: Callable[[Setting], bool] = lambda setting: True
    ) -> None:
        """Add settings of a run; help shows those that ``command`` needs first."""
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all options and exit")
        groups = {topic: self.add_argument_group(title) for topic, title in TOPICS.items()}
        for each in filter(takes, settings()):
            action = groups[each.topic].add_argument(
                each.flag, dest=each.name, default=argparse.SUPPRESS, **_explained(each)
            )
            if command not in each.option.first.split():
                self._advanced.append(action)
        self._add_former_names()

    def add_chosen_settings(self, *names: str) -> None:
        """Add some of the settings of a run, those of these names."""
        for each in settings():
            if each.name in names:
                self.add_argument(
                    each.flag, dest=each.name, default=argparse.SUPPRESS, **_explained(each)
                )

    def _add_former_names(self) -> None:
        for name in FORMER_NAMES:
            flag = f"--{name.replace('_', '-')}"
            self.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def format_help(self) -> str:
        """Return the help without what is advanced."""
        told = [each.help for each in self._advanced]
        for each in self._advanced:
            each.help = argparse.SUPPRESS
        try:
            return self.format_full_help()
        finally:
            for each, help in zip(self._advanced, told, strict=True):
                each.help = help

    def format_full_help(self) -> str:
        """Return the help with every option."""
        if self._advanced:  # nobody reads a usage of sixty options
            operands = (_shown(each) for each in self._get_positional_actions())
            self.usage = " ".join([f"{self.prog} [options]", *operands])
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; a command refuses itself what it does not know, and suggests what it does."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse_unknown(unknown)
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with one line: which argument is wrong or missing, and what to do."""
        if not message.startswith(_MISSING):
            self._refuse(message)
        lacking = message.removeprefix(_MISSING)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and action.metavar == lacking:
                lacking = f"a command ({', '.join(action.choices)})"
        self.exit(2, f"cah: {self._name} needs {lacking}; for example: `{self.example}`.\n")

    def _refuse(self, sentence: str, near: Sequence[str] = ()) -> NoReturn:
        """Exit with a line for something that is not known, and what may have been meant."""
        meant = f" did you mean {near[0]}?" if near else ""
        help = "--help-all" if self._advanced else "--help"
        self.exit(2, f"cah: {sentence};{meant} `{self.prog} {help}` lists what there is.\n")

    @property
    def _name(self) -> str:
        """The command, in a sentence that begins with `cah`."""
        return self.prog.removeprefix("cah ")

    def _refuse_unknown(self, arguments: Sequence[str]) -> NoReturn:
        options = [each.partition("=")[0] for each in arguments if each.startswith("-")]
        if not options:
            self._refuse(f"{self._name} does not take {arguments[0]!r}")
        near = get_close_matches(options[0], [*self._option_string_actions], n=1)
        self._refuse(f"{self._name} has no option {options[0]}", near)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if not isinstance(action, argparse._SubParsersAction):
            known = [*map(str, action.choices)]
            self._refuse(
                f"{_shown(action)}: {value!r} is not one of {', '.join(known)}",
                get_close_matches(value, known, n=1) if isinstance(value, str) else (),
            )
        own = {name: f"{self.prog} {name}" for name in action.choices}
        paths = {path.split()[-1]: path for path, _ in self.commands()} | own
        near = [f"`{paths[name]}`" for name in get_close_matches(value, paths, n=1)]
        self._refuse(f"{self._name} has no command {value}", near)

    def commands(self) -> Iterator[tuple[str, Parser]]:
        """Yield every command below this parser by its full name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield parser.prog, parser
                    yield from parser.commands()


def typed_settings(chosen: argparse.Namespace) -> dict[str, str]:
    """Return the settings among what was typed, as texts by name."""
    typed = vars(chosen)
    names = (*FORMER_NAMES, *(each.name for each in settings()))
    given = {name: typed[name] for name in names if name in typed}
    return given | {name: ",".join(each) for name, each in given.items() if isinstance(each, list)}


class _Formatter(argparse.HelpFormatter):
    """Wraps texts without breaking words, keeps indented lines, and lists commands by groups.

    It leaves room for the longest command, whose indent argparse forgets.
    """

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrapped(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = groupby(text.splitlines(), lambda line: not line or line.startswith(" "))
        lines = (
            line
            for kept, block in blocks
            for line in (block if kept else _wrapped(" ".join(block), width))
        )
        return "\n".join(indent + line for line in lines)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _format_action(self, action: argparse.Action) -> str:
        groups = getattr(action, "groups", None)
        if not groups:
            return super()._format_action(action)
        listed = {each.dest: each for each in action._get_subactions()}  # type: ignore[attr-defined]
        lines = []
        for title, names in groups.items():
            lines.append(f"{'':{self._current_indent}}{title}\n")
            self._indent()
            lines += [self._format_action(listed[name]) for name in names]
            self._dedent()
        return "".join(lines)


class _HelpAll(argparse.Action):
    """Print the help with every option, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        assert isinstance(parser, Parser)
        print(parser.format_full_help(), end="")
        parser.exit()


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text as lines; a word that is longer than a line is broken after commas and bars."""
    lines = [""]
    for word in text.split():
        pieces = [word] if len(word) <= width else re.findall(r"[^,|]+[,|]*|[,|]+", word)
        for number, piece in enumerate(pieces):
            gap = " " if lines[-1] and not number else ""
            if lines[-1] and len(lines[-1]) + len(gap) + len(piece) > width:
                lines.append(piece)
            else:
                lines[-1] += gap + piece
    return lines


def _shown(action: argparse.Action) -> str:
    """Return how an argument is named for people."""
    name = str("/".join(action.option_strings) or action.metavar or action.dest)
    return f"[{name}]" if action.nargs == "?" and not action.option_strings else name


def _explained(setting: Setting) -> dict[str, Any]:
    """Return what argparse needs to know of a setting.

    Its value stays the text that was typed, so that a bad one gets the same sentence at every door.
    """
    default = setting.default
    shape: dict[str, Any] = {"metavar": setting.name.upper().split("_")[-1]}
    if setting.type is bool:
        shape = {"nargs": "?", "const": "yes", "metavar": "yes|no"}
        default = "yes" if default else "no"
    elif setting.type in (int, float):
        shape = {"metavar": "N"}
    elif setting.option.choices:
        shape = {"metavar": "|".join(setting.option.choices)}
    if isinstance(default, tuple):
        default = ",".join(default)
    bounds = setting.bounds().removeprefix(" of").strip()
    told = f" ({bounds})" if bounds else ""
    told += f" [{default}]" if default not in ("", None) else ""
    if setting.option.table:
        shape = {"nargs": "+", "metavar": "PATTERN", "action": "extend"}  # a shell's glob too
    return {"help": (setting.option.help + told).replace("%", "%%"), **shape}

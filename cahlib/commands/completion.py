"""`cah completion`: the script that lets a shell complete commands, options and their values."""

from __future__ import annotations

import argparse
import copy
from typing import Any

from cahlib.commands.parser import Parser
from cahlib.core.config import settings

#: Where each shell reads completions from, by the user's own account.
_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/cah",
    "zsh": "~/.zfunc/_cah",
    "fish": "~/.config/fish/completions/cah.fish",
}

#: What arguments name, by their names; the rest is free text.
_FOLDERS = {"dataset", "datasets", "output", "filters", "wheelhouse", "model", "into"}
_FILES = {
    "file", "list", "hashes", "looks", "urls", "uids", "crawl", "links", "engine", "against",
    "marks", "not_marks", "page", "prompts", "head",
}  # fmt: skip


def add(commands: Any, cah: Parser) -> None:
    """Add the command; it completes what the parser ``cah`` knows."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes `cah` in a shell",
        description="Print a script that completes commands, options and values in a shell. Store "
        "it at:\n" + "\n".join(f"  {shell:<5} {path}" for shell, path in _PLACES.items()) + "\n"
        "For zsh, have `fpath+=~/.zfunc` before `compinit` in ~/.zshrc.",
        example="cah completion fish > ~/.config/fish/completions/cah.fish",
    )
    parser.add_argument("shell", metavar="SHELL", choices=[*_PLACES], help=", ".join(_PLACES))
    parser.set_defaults(act=lambda chosen: _completion(chosen, cah))


def _completion(chosen: argparse.Namespace, cah: Parser) -> int:
    import shtab

    cah = copy.deepcopy(cah)  # with the choices below it would refuse `--forms images,embeddings`
    known = {each.name: each for each in settings()}
    for _, parser in cah.commands():
        for action in parser._actions:
            setting = known.get(action.dest) if action.option_strings else None
            if setting and setting.type is bool:
                action.choices = ["yes", "no"]
            elif setting and setting.option.choices:
                action.choices = setting.option.choices
            elif action.dest in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.dest in _FILES or (setting and setting.option.file):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(cah, shell=chosen.shell))
    return 0

"""Help of every command: what is needed first, an example that works, everything on request."""

import re
import shlex

import pytest

from cahlib.commands.cli import COMMAND_GROUPS, EXIT_CODES, _parser
from cahlib.commands.retry import is_taken
from cahlib.core.config import settings
from cahlib.core.settings import TOPICS
from cahlib.notebook.fields import FIRST_FIELDS
from tests.world.command import said

CAH = _parser()
COMMANDS = dict(CAH.commands())
TAKES_SETTINGS = [
    path for path, parser in COMMANDS.items() if "--contact" in parser._option_string_actions
]


def flags(help):
    """The options that a help lists, without those that most commands have."""
    return {*re.findall(r"^  (?:-\w, )?(--[\w-]+)", help, re.MULTILINE)} - {
        "--help",
        "--json",
        "--quiet",
    }


@pytest.mark.parametrize("path", COMMANDS)
def test_help_ends_with_an_example_that_is_understood(path, capsys):
    ran = said(capsys, *path.split()[1:], "--help")
    assert (ran.returncode, ran.stderr) == (0, "") and "\x1b" not in ran.stdout
    assert "%%" not in ran.stdout
    heading, example = ran.stdout.rstrip().splitlines()[-2:]
    words = shlex.split(example.partition(">")[0])
    assert heading == "example:" and " ".join(words).startswith(path)
    assert callable(CAH.parse_args(words[1:]).act)


def words(help):
    """The content of a help, without where its lines end; long lists may be broken after commas."""
    return {*re.split(r"[\s,|]+", help)}


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("path", COMMANDS)
def test_help_breaks_no_word_in_a_terminal_of_any_width(path, columns, monkeypatch):
    helps = []
    for each in (1000, columns):
        monkeypatch.setenv("COLUMNS", str(each))
        helps.append(COMMANDS[path].format_full_help())
    assert words(helps[0]) == words(helps[1])
    texts = [line for line in helps[1].splitlines() if not line.startswith(("  -", "  {"))]
    wrapped = re.compile(r"( {24}|\S)\S* ")  # an option's explanation, a description; no lone word
    assert not [line for line in texts if wrapped.match(line) and len(line) >= columns]


@pytest.mark.parametrize("path", TAKES_SETTINGS)
def test_help_all_has_every_option_and_help_has_few(path, capsys):
    words = path.split()[1:]
    short, full = (flags(said(capsys, *words, each).stdout) for each in ("--help", "--help-all"))
    every = {each.flag for each in settings() if path != "cah retry" or is_taken(each)}
    assert every <= full and short < full
    assert 1 <= len(short & every) <= 10


def test_the_ten_that_a_run_needs_first_are_in_the_form_too(capsys):
    shown = flags(said(capsys, "run", "--help").stdout) - {"--help-all"}
    assert len(shown) == 10 and shown <= {f"--{name.replace('_', '-')}" for name in FIRST_FIELDS}


def test_help_is_grouped_by_what_settings_are_about(capsys):
    help = said(capsys, "run", "--help-all").stdout
    headings = re.findall(r"^(\S.*):$", help, re.MULTILINE)
    assert [each for each in headings if each in TOPICS.values()] == [*TOPICS.values()]
    assert {each.topic for each in settings()} == {*TOPICS}
    words = {word for each in settings() for word in each.option.first.split()}
    assert words == {"run", "worker", "gpu", "up", "swarm", "retry"}


def test_every_command_is_in_one_group(capsys):
    help = said(capsys, "--help").stdout
    listed = re.findall(r"^    ([a-z]+)  ", help, re.MULTILINE)
    assert listed == [name for names in COMMAND_GROUPS.values() for name in names]
    assert sorted(listed) == sorted(path.split()[1] for path in COMMANDS if path.count(" ") == 1)
    titles = re.findall(r"^  ([a-z].*)$", help.partition("commands:")[2], re.MULTILINE)
    assert titles[: len(COMMAND_GROUPS)] == [*COMMAND_GROUPS]


def test_exit_codes_are_explained_and_a_bare_command_shows_help(capsys):
    help = said(capsys, "--help")
    assert [*re.findall(r"^  (\d+) ", help.stdout, re.MULTILINE)] == [*map(str, EXIT_CODES)]
    bare = said(capsys)
    assert (bare.returncode, bare.stdout, bare.stderr) == (2, "", help.stdout)

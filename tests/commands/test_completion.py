"""`cah completion` in real shells: commands, options and values."""

import argparse
import shlex
import shutil
import subprocess

import pytest

from cahlib.commands.cli import _parser
from cahlib.core.presets import PRESETS
from tests.world.command import said

COMMANDS = dict(_parser().commands())
#: What is typed, and what a shell makes of it when Tab is pressed after each "^".
TYPED = {
    "swa^stat^": "swarm status",
    "run --prese^data^": "run --preset datacomp",
    "run --language-e^pag^": "run --language-evidence page",
    "completion fi^": "completion fish",
    "tracker export lea^": "tracker export leaderboard",
}

_BASH = """
source cah.bash
function=$(complete -p cah | sed 's/.*-F \\([^ ]*\\).*/\\1/')
while IFS= read -r line; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    "$function" cah "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
    echo "${COMPREPLY[*]}"
done
"""

_ZSH = """
zmodload zsh/zpty
tab=$'\\t'
zpty shell zsh -f -i
zpty -w shell 'PS1=; stty -echo; fpath+=$PWD; autoload -U compinit; compinit -u -D
    cah() { print R""AN "$@" }; print BEG""UN'  # what is echoed has neither word
line=; while [[ $line != *BEGUN* ]]; do zpty -r shell line || exit 1; done
while IFS= read -r typed; do
    zpty -w shell "cah ${typed//^/$tab}"
    line=; while [[ $line != *RAN* ]]; do zpty -r shell line || exit 1; done
    print -r -- "${line#*RAN }"
done
"""


@pytest.fixture
def answers(tmp_path, capsys):
    """What a shell with a script of its own prints for lines, a line each."""

    def shell(name, file, script, lines):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed.")
        ran = said(capsys, "completion", name)
        assert (ran.returncode, ran.stderr) == (0, "")
        (tmp_path / file).write_text(ran.stdout)
        options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
        done = subprocess.run(
            [name, *options, "-c", script], cwd=tmp_path, text=True, capture_output=True,
            input="".join(f"{line}\n" for line in lines),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]

    return shell


def test_bash_completes_every_command_with_its_options_and_values(answers):
    lines = [f"{path} --" for path in COMMANDS]
    values = {
        "cah run --preset ": {*PRESETS},
        "cah run --og-images ": {"yes", "no"},
        "cah guide rea": {"reading"},
        "cah run --blocked-domains cah.": {"cah.bash"},
    }
    found = [{*line.split()} for line in answers("bash", "cah.bash", _BASH, [*lines, *values])]
    for parser, shown in zip(COMMANDS.values(), found, strict=False):
        actions = (each for each in parser._actions if each.help != argparse.SUPPRESS)
        known = {o for each in actions for o in each.option_strings if o.startswith("--")}
        assert shown >= known, parser.prog
    assert found[len(lines) :] == [*values.values()]


def test_zsh_completes_what_is_typed(answers):
    assert answers("zsh", "_cah", _ZSH, TYPED) == [*TYPED.values()]


def test_fish_completes_what_is_typed(answers):
    lines = [typed.split("^")[-2] for typed in TYPED]
    before = [f"cah {done.rpartition(' ')[0]} " for done in TYPED.values()]
    asked = [shlex.quote(f"{b}{line.split()[-1]}") for b, line in zip(before, lines, strict=True)]
    script = f"source cah.fish; for each in {' '.join(asked)}; complete -C $each; end"
    found = [line.split("\t")[0] for line in answers("fish", "cah.fish", script, ())]
    assert found == [done.split()[-1] for done in TYPED.values()]


def test_what_completes_values_refuses_none(capsys):
    assert said(capsys, "completion", "bash").returncode == 0
    assert "cah: contact" in said(capsys, "run", "--forms", "images,embeddings").stderr

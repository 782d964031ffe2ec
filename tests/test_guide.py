"""What README.md and the guides say is so: commands, options, code, links and generated parts."""

import ast
import contextlib
import io
import pty
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cahlib.commands import cli
from cahlib.core.config import Job, settings
from cahlib.dataset.layout import LAYOUT
from cahlib.dataset.show.pages import write_pages
from cahlib.guide import GUIDES, page_title, without_comments
from tests import docs
from tests.benchmarks import figures
from tests.world import judged

ROOT = docs.ROOT
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in docs.PAGES}
PATHS = {page.stem: page for page in docs.PAGES}
every_page = pytest.mark.parametrize("name", PAGES)

#: Options of other programs that pages name.
FOREIGN = {
    "--ignore-patterns", "--dir-mode", "--repo-type", "--embeddings_folder", "--index_folder",
    "--execute", "--to", "--nthreads", "--help", "--version", "--https", "--connections", "--small",
    "--minutes", "--seed", "--only", "--rounds", "--links",
}  # fmt: skip
#: What stands for a shard of the dataset in code.
SNIPPETS = {"SHARD": "s-0"}
#: Packages that take seconds to import: code that needs one is compiled here, and run beside the
#: cards' code (`tests/dataset/test_readers.py`, `tests/dataset/test_formats.py`).
HEAVY = {"datasets", "tensorflow"}


@cache
def parser():
    return cli._parser()


@cache
def commands():
    return {each.prog.removeprefix("cah "): each for each, _ in docs.known_commands(parser())}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def lines(text):
    """Every line of `cah` in the shell code of a page, as a shell reads it."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r";|&&|\|\|", re.sub(r"(^| )#.*", "", line)):
                if part.split()[:1] == ["cah"]:
                    words = shlex.split(part)
                    yield words[1 : words.index(">") if ">" in words else None]


def mentioned(text):
    """What is set as code in the text of a page, outside its blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@every_page
def test_every_figure_was_measured_by_a_benchmark(name):
    assert figures.unknown(PAGES[name]) == []


def test_a_figure_that_nobody_measured_is_found():
    known = f"{figures.read()['judge']['rate']:.1f} pairs/s"
    assert figures.unknown(f"It takes 123,456 ms or {known}.") == ["123,456 ms"]


@every_page
def test_the_generated_parts_equal_the_code(name):
    assert docs.renewed(PAGES[name]) == PAGES[name], "run: make docs"


@every_page
def test_every_command_line_parses(name):
    for words in lines(PAGES[name]):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                chosen = vars(parser().parse_args(words))
            except SystemExit:
                pytest.fail(f"cah {shlex.join(words)}: {errors.getvalue()}")
        given = {each.name: chosen[each.name] for each in settings() if each.name in chosen}
        if words[0] in ("run", "worker", "gpu"):
            Job.from_values(given)


@every_page
def test_every_command_that_is_mentioned_exists(name):
    for code in mentioned(PAGES[name]):
        words = code.split()
        if words[0] != "cah" or len(words) == 1 or words[1].startswith("-"):
            continue
        command = max(
            (each for each in commands() if code.startswith(f"cah {each}")), key=len, default=""
        )
        grouped = any(each.startswith(f"{words[1]} ") for each in commands())
        assert command or (grouped and len(words) == 2), code
        known = parser() if not command else commands()[command]
        unknown = {w for w in words if w.startswith("--")} - {*known._option_string_actions}
        assert not unknown, code


@every_page
def test_every_option_and_variable_that_is_named_exists(name):
    known = {option for each in commands().values() for option in each._option_string_actions}
    named = {option for code in mentioned(PAGES[name]) for option in re.findall(r"--[\w-]+", code)}
    assert named - known - FOREIGN == set()
    variables = set(re.findall(r"\bCAH_[A-Z_]+\b", PAGES[name]))
    ours = {f"CAH_{each.name.upper()}" for each in settings()}
    assert {each for each in variables - ours if each not in source()} == set()


@cache
def source():
    """The text of all that reads variables."""
    paths = [*ROOT.glob("cahlib/**/*.py"), ROOT / "kaggle.sh", ROOT / "gpucah.ipynb"]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def test_the_sentences_of_troubleshooting_are_those_that_are_said():
    said = re.sub(r'"\s*\n\s*f?"', "", source()).replace("\\'", "'")
    sentences = re.findall(r"^\*\*(.+?)\*\*$", PAGES["troubleshooting"], flags=re.MULTILINE)
    sentences = [each for one in sentences for each in one.split("**, **")]
    assert len(sentences) >= 20
    parts = [part for each in sentences for part in re.split(r" ?… ?|\bN\b|\bFILE\b", each)]
    assert [part for part in parts if len(part) > 7 and part.strip(" .") not in said] == []


@every_page
def test_links_lead_somewhere(name):
    folder = PATHS[name].parent
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[name])):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (folder / path).resolve() if path else PATHS[name]
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@every_page
def test_files_tests_and_targets_that_are_named_exist(name):
    text = PAGES[name]
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"`((?:test|bench)_\w+)", text)) <= tests
    modules = re.findall(r"python -m (tests[\w.]*)", text)
    assert [m for m in modules if not importable(ROOT / m.replace(".", "/"))] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = {each for code in [*mentioned(text), *blocks(text, "bash")]
               for each in re.findall(r"^make ([a-z-]+)", code, flags=re.MULTILINE)}  # fmt: skip
    assert {each for each in targets if not re.search(rf"^{each}\b.*:", makefile, re.M)} - {
        "test", "quick"
    } == set()  # fmt: skip
    files = re.findall(r"`((?:cahlib|tests)/[\w./]+\.\w+)\b", text)
    named = [each for each in files if not Path(each).stem.isupper()]  # no TOPIC.md
    assert [each for each in named if not (ROOT / each).exists()] == []


def importable(path):
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The folder that holds `my-dataset`, with two shards."""
    folder = tmp_path_factory.mktemp("guide")
    for number in (0, 1):
        judged.write(folder / "my-dataset", first=100 * number, shard=f"s-{number}")
    write_pages(folder / "my-dataset", {})
    return folder


CODE = [(name, number) for name in PAGES for number, _ in enumerate(blocks(PAGES[name], "python"))]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's file
@pytest.mark.parametrize(("name", "number"), CODE)
def test_the_code_runs(dataset, name, number, monkeypatch, capsys):
    text = blocks(PAGES[name], "python")[number]
    for placeholder, value in SNIPPETS.items():
        text = text.replace(placeholder, value)
    code = compile(text, f"{name}.md", "exec")
    if HEAVY & imported(text):
        return
    for package in imported(text):
        pytest.importorskip(package)
    monkeypatch.chdir(dataset)
    exec(code, {})
    assert capsys.readouterr().out or "assert" in text


def imported(text):
    """The packages that code imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_every_file_of_a_dataset_is_described(dataset):
    table = PAGES["formats"].partition("## Files")[2].partition("##")[0]
    listed = {
        each
        for row in table.splitlines()
        for each in re.findall(r"`([^` ]+)`", row[1:].split("|")[0])
    }
    for place in LAYOUT.values():
        assert place.format("<shard>") in listed
    folder = dataset / "my-dataset"  # beside it is what the guides' code writes
    made = {
        re.sub(r"s-\d", "<shard>", re.sub(r"\d{5}", "<number>", str(path.relative_to(folder))))
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert {each for each in made - listed if not each.startswith("run/")} == set()


@every_page
def test_a_page_can_be_read(name):
    text = PAGES[name]
    assert text.startswith("# ") and text.endswith("\n") and not re.search(r"[ \t]$", text, re.M)
    assert text.count("```") % 2 == 0


def test_every_page_is_listed():
    assert {*GUIDES} == {*PAGES} - {"README"}


def test_the_guide_is_shown_by_a_command(capsys):
    assert cli.main(["guide"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line][: len(GUIDES)] == [*GUIDES]
    for topic in GUIDES:
        assert page_title(topic) in out
        assert cli.main(["guide", topic]) == 0
        shown = capsys.readouterr().out
        assert shown == without_comments(PAGES[topic]) and "<!--" not in shown


def test_a_terminal_shows_it_rendered(tmp_path):
    """By the pager that people have chosen; with NO_COLOR in bold and underlined letters alone."""
    script = tmp_path / "pager"
    script.write_text(f"#!/bin/sh\ncat > {tmp_path}/paged\n")
    script.chmod(0o755)
    env = {"PAGER": str(script), "PATH": "/usr/bin:/bin", "TERM": "xterm", "NO_COLOR": "1"}
    _, terminal = pty.openpty()
    command = [sys.executable, "-m", "cahlib.commands.cli", "guide", "swarm"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    subprocess.run(command, env=env, cwd=ROOT, check=True, **streams)
    paged = (tmp_path / "paged").read_text()
    assert {*re.findall(r"\x1b\[([\d;]*)m", paged)} <= {"0", "1", "3", "4", "1;4"}
    plain = re.sub(r"\x1b\[[\d;]*m", "", paged)
    assert plain.split("\n")[0].strip() == page_title("swarm")
    assert not any(mark in plain for mark in ("<!--", "\n#", "```", "\x1b"))
    assert "cah swarm up" in plain and max(map(len, plain.split("\n"))) <= 100


def test_an_unknown_page_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        cli.main(["guide", "swrm"])
    assert refused.value.code == 2 and "swarm" in capsys.readouterr().err

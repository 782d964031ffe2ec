"""The parts of the documentation that are made from the code; `make docs` renews them.

Such a part stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in README.md or in a guide.
"""

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

from cahlib.commands import cli
from cahlib.commands.parser import Parser
from cahlib.core import rates
from cahlib.core.config import Job, settings
from cahlib.core.presets import PRESETS
from cahlib.core.records import DropReason
from cahlib.core.settings import TOPICS, Setting
from cahlib.dataset import outcomes
from cahlib.dataset.layout import CURRENT_LAYOUT
from cahlib.dataset.write import columns
from cahlib.run.estimate import ServerPrice, estimate_run
from tests.benchmarks import figures

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "cahlib/guide").glob("*.md"))]
_BLOCK = re.compile(r"<!-- ([a-z-]+) -->\n.*?<!-- /\1 -->", re.DOTALL)


def tree() -> str:
    """A line a module: its place, and the first line of its docstring."""
    lines = []
    for folder in sorted(path.parent for path in ROOT.glob("cahlib/**/__init__.py")):
        depth = len(folder.relative_to(ROOT).parts) - 1
        lines.append(_line(folder.name + "/", _about(folder / "__init__.py"), depth))
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                lines.append(_line(path.name, _about(path), depth + 1))
    return "```\n" + "\n".join(lines) + "\n```"


def _line(name: str, about: str, depth: int) -> str:
    return f"{'  ' * depth + name:<21} {about}"


def _about(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0].rstrip(".")


def commands() -> str:
    """Every command with its help and an example."""
    every = ((f"`{parser.prog}`", help, f"`{parser.example}`") for parser, help in known_commands())
    return _table(("command", "what it does", "example"), every)


def known_commands(parser: Parser | None = None, help: str = "") -> Iterator[tuple[Parser, str]]:
    """Each command that does something, with its help."""
    parser = parser or cli._parser()
    inner = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not inner:
        yield parser, help
    for action in inner:
        helps = {each.dest: each.help or "" for each in action._choices_actions}
        for name, each in action.choices.items():
            yield from known_commands(each, helps.get(name, ""))


def options() -> str:
    """Every setting of a run, by its topic."""
    parts = []
    for topic, title in TOPICS.items():
        rows = [
            (f"`{each.flag}`", _default(each), each.option.help + _bounds(each), _later(each))
            for each in settings()
            if each.topic == topic
        ]
        head = ("option", "default", "meaning", "may change")
        parts.append(f"### {title[:1].upper()}{title[1:]}\n\n{_table(head, rows)}")
    return "\n\n".join(parts)


def _default(setting: Setting) -> str:
    value = setting.default
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{value}`" if value not in ("", None) else ""


def _bounds(setting: Setting) -> str:
    if setting.option.choices:
        return f" ({', '.join(f'`{each}`' for each in setting.option.choices)})"
    bounds = setting.bounds().removeprefix(" of").strip()
    return f" ({bounds})" if bounds else ""


def _later(setting: Setting) -> str:
    return "yes" if setting.option.free else "its files may grow" if setting.option.grows else ""


def other_options() -> str:
    """The options of every command beside the settings of a run; equal ones together."""
    own = {each.name for each in settings()} | {"help_all"}
    found: dict[tuple[str, str], list[str]] = {}
    for parser, _ in known_commands():
        of_a_run = own if any(each.dest == "contact" for each in parser._actions) else set()
        for action in parser._actions:
            flags = " ".join(action.option_strings)
            hidden = action.help == argparse.SUPPRESS
            if flags and not hidden and action.dest not in {"help", "quiet", *of_a_run}:
                help = (action.help or "").replace("%%", "%")
                found.setdefault((flags, help), []).append(f"`{parser.prog}`")
    rows = ((", ".join(names), f"`{flags}`", help) for (flags, help), names in found.items())
    return _table(("command", "option", "meaning"), rows)


def exit_codes() -> str:
    """What the command's exit codes mean."""
    return _table(("exit code", "meaning"), ((str(k), what) for k, what in cli.EXIT_CODES.items()))


def presets() -> str:
    """The presets with their models."""
    head = ("preset", "model", "weights", "threshold", "")
    rows = (
        (f"`{name}`", p.model, p.pretrained, f"{p.threshold:.2f}", p.why)
        for name, p in PRESETS.items()
    )
    return _table(head, rows)


def metadata_columns() -> str:
    """The columns of the metadata."""
    rows = ((f"`{e.name}`", str(e.type), e.about) for e in columns.ALL_COLUMNS)
    return f"Layout {CURRENT_LAYOUT}.\n\n" + _table(("column", "type", "content"), rows)


def outcome_columns() -> str:
    """The columns of the outcomes."""
    rows = ((f"`{e.name}`", str(e.type), e.about) for e in outcomes.OUTCOME_COLUMNS)
    return _table(("column", "type", "content"), rows)


def drop_reasons() -> str:
    """Why something is dropped, by stage."""
    rows = ((each.stage.value, f"`{each.value}`", each.phrase) for each in DropReason)
    return _table(("stage", "reason", "what it"), rows)


def metrics() -> str:
    """The tracker's numbers for Prometheus, from the calls that write them."""
    path = ROOT / "cahlib/tracker/metrics.py"
    rows = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_metric":
            name, kind, text = (ast.literal_eval(each) for each in node.args[:3])
            rows.append((f"`cah_{name}`", kind, text))
    return _table(("metric", "kind", "meaning"), rows)


def routes() -> str:
    """The calls of version 1 of the tracker's API, from its functions."""
    app, calls = (
        ast.parse((ROOT / f"cahlib/tracker/{name}.py").read_text(encoding="utf-8"))
        for name in ("app", "hot_routes")
    )
    prefixes = {"_v1": "/v1", "_admin": "/v1/admin"}
    rows = []
    for node in ast.walk(app):
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                owner = getattr(call.func.value, "id", "")
                if owner in prefixes:
                    path = prefixes[owner] + ast.literal_eval(call.args[0])
                    rows.append((path, call.func.attr.upper(), _summary(node)))
    functions = {each.name: each for each in calls.body if isinstance(each, ast.FunctionDef)}
    for each in ast.walk(calls):
        if isinstance(each, ast.Dict):
            for key, value in zip(each.keys, each.values, strict=True):
                if isinstance(key, ast.Constant) and str(key.value).startswith("/v1/"):
                    path = key.value.replace(":int", "")
                    rows.append((path, "POST", _summary(functions[value.elts[1].id])))
    listed = ((f"`{method} {path}`", about) for path, method, about in sorted(rows))
    return _table(("call", "what it does"), listed)


def _summary(function: ast.FunctionDef) -> str:
    return (ast.get_docstring(function) or "").split("\n\n", 1)[0]


def costs() -> str:
    """What runs cost and bring, by the estimate that `cah run` shows where nothing was measured."""
    rows = []
    with mock.patch.object(rates, "_path", lambda: None):
        for shards, servers in ((2, 0), (20, 4), (200, 20), (2000, 20)):
            job = Job.from_values({"shards": shards, "device": "cuda", "workers": 1})
            price = ServerPrice(cores=servers, hourly=0.01 * servers, currency="EUR")
            found = estimate_run(job, price if servers else None)
            low, high = (f"{each:,.0f}" for each in found.pairs)
            where = f"{servers} one-core servers" if servers else "this machine, one process"
            money = f"{found.cost:.2f}" if servers else "none"
            rows.append((f"{shards:,}", where, f"{found.hours:.1f}", money, f"{low} to {high}"))
    return _table(("shards", "scraped by", "hours", "EUR for servers", "expected pairs"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


def comparison() -> str:
    """README's figures beside those of other tools."""
    rows = (line[:3] for line in figures.lines(figures.COMPARED))
    return _table(("what", "cahlib", "peer"), rows)


def all_figures() -> str:
    """The guide's figures, with the day on which they were measured."""
    return _table(("what", "cahlib", "peer", "measured"), figures.lines(figures.ALL))


BLOCKS = {
    "tree": tree, "commands": commands, "options": options, "other-options": other_options,
    "exit-codes": exit_codes, "presets": presets, "columns": metadata_columns,
    "drop-reasons": drop_reasons, "metrics": metrics, "routes": routes, "costs": costs,
    "comparison": comparison, "figures": all_figures, "outcomes": outcome_columns,
}  # fmt: skip


def renewed(text: str) -> str:
    """A page with its marked parts made anew."""
    return _BLOCK.sub(
        lambda found: f"<!-- {found[1]} -->\n{BLOCKS[found[1]]()}\n<!-- /{found[1]} -->", text
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")

"""Imports point down: doors → run → packages → core; and each border that the layout promises."""

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cahlib"
FILES = sorted(PACKAGE.rglob("*.py"))
#: The packages, each with those that it may import beside itself and core.
MAY_IMPORT = {
    "core": set(),
    "crawl": {"fetch"}, "fetch": {"image"}, "image": set(), "parcel": set(),
    "model": {"image"}, "dataset": {"fetch", "image", "model"},
    "browse": {"image", "model", "dataset"},
    "engine": set(), "swarm": {"engine"}, "ledger": set(), "tracker": {"ledger"},
    "demo": set(), "guide": set(),
}  # fmt: skip
MAY_IMPORT["run"] = MAY_IMPORT.keys() - {"core", "tracker", "browse", "demo", "guide"}
DOORS = {"commands", "kaggle", "notebook"}

#: Names that others call, which are the same in several files.
NAMED_TWICE = {
    "add",  # each module of commands adds its own to the parser
    "main",  # each program has one
    "dask_setup",  # Dask calls it in each module that it preloads
    *("revision", "down_revision", "upgrade"),  # Alembic reads them in each migration
}

#: Libraries that are slow or large to import, and the files or folders where each may be.
HOMES = {
    "torch": {"model/frameworks.py"},
    "open_clip": {"model/frameworks.py"},
    "duckdb": {"dataset/expression.py"},
    "distributed": {"engine/"},
    "dask": {"engine/"},
    "paramiko": {"swarm/ssh.py"},
    "cryptography": {"engine/certificates.py", "swarm/keys.py"},  # TLS, and keys of SSH
    "hcloud": {"swarm/hetzner.py"},
    "kaggle": {"kaggle/service.py"},
    "sqlalchemy": {"ledger/", "tracker/"},
    "alembic": {"tracker/"},
    "fastapi": {"tracker/", "commands/serve.py"},
    "ipywidgets": {"notebook/"},
    "IPython": {"notebook/"},
    "cykooz_resizer": {"image/pixels.py"},
    "aiohttp": {"fetch/", "browse/"},
    "faiss": {"dataset/maintain/similar.py"},
    "re2": {"crawl/caption_rules.py"},
    "ahocorasick_rs": {"crawl/caption_rules.py"},
    "simplejpeg": {"image/jpeg.py"},
}


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, by its full name."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def tops(path: Path) -> set[str]:
    """The packages that a file imports, ours among them."""
    return {name.split(".")[0] for name in imports(path)}


def inner(path: Path) -> set[str]:
    """The parts of cahlib that a file imports: the second word of their names."""
    named = (name.split(".") for name in imports(path) if name.startswith("cahlib."))
    return {words[1] for words in named} - {"__version__"}


def part(path: Path) -> str:
    """Which part of cahlib a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_point_down():
    wrong = {}
    for path in FILES:
        own, used = part(path), inner(path)
        if own in MAY_IMPORT:
            wrong[path] = used - MAY_IMPORT[own] - {own, "core"}
        elif own in DOORS:
            wrong[path] = used & (DOORS - {own})
        if own == "core":
            wrong[path] |= tops(path) - sys.stdlib_module_names - {"cahlib", "numpy"}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_large_libraries_have_one_home():
    wrong = {
        (name, here)
        for path in FILES
        if part(path) != "demo"  # the demo's training is a program of its own
        for here in [str(path.relative_to(PACKAGE))]
        for name in tops(path) & HOMES.keys()
        if not any(here.startswith(home) for home in HOMES[name])
    }
    assert wrong == set()


@pytest.mark.parametrize("module", ["cahlib", "cahlib.commands.cli", "cahlib.core.config"])
def test_an_import_loads_nothing_heavy(module):
    script = f"import sys, {module}; print(*(name for name in sys.modules if '.' not in name))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {*HOMES, "numpy", "pyarrow", "PIL", "fsspec", "ftfy", "msgspec", "tqdm"}
    assert not heavy & set(ran.stdout.split())


def test_scraping_loads_no_torch():
    script = "import sys, cahlib.run.scrape; assert not {'torch', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_file_can_be_known_whole():
    long = {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_types_are_made_known_to_msgspec_by_one_thread():
    """A decoder made at import: two threads that meet a type for the first time would crash."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    wrong = {
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in FILES
        for function in ast.walk(parsed(path))
        if isinstance(function, functions)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr == "Decoder"
        or (call.func.attr == "decode" and any(word.arg == "type" for word in call.keywords))
    }
    assert wrong == set()


def test_public_names_are_defined_once():
    places = defaultdict(list)
    for path in FILES:
        for node in parsed(path).body:
            names = [node.name] if hasattr(node, "name") else []
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                places[name].append(str(path.relative_to(PACKAGE)))
    public = {name: where for name, where in places.items() if not name.startswith("_")}
    public = {name: where for name, where in public.items() if name not in NAMED_TWICE}
    assert {name: where for name, where in public.items() if len(where) > 1} == {}


def test_a_docstring_says_what_a_thing_is():
    """It opens with a noun or a verb, not with a question: ruff checks functions alone."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, documented) and (text := ast.get_docstring(node))
        if text.split()[0] in ("What", "Whether", "Who", "How", "Where", "Which", "Why")
    }
    assert found == set()

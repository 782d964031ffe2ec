"""gpucah.ipynb: its cells are thin, and it makes a dataset where nobody is there to click."""

import ast
import subprocess
import sys

import pytest
from IPython.core.inputtransformer2 import TransformerManager

import cahlib
from cahlib import demo, notebook
from cahlib.core.config import replace_settings
from cahlib.core.errors import ConfigError
from cahlib.dataset.maintain.verify import verify
from cahlib.demo import world
from cahlib.notebook.fields import FIRST_FIELDS
from tests.world import cloud as clouds
from tests.world import hosts, notebooks, zygote
from tests.world.jobs import LIMIT

#: What belongs into cahlib, not into a cell.
LOGIC = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If,
    ast.Try, ast.With, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip


def execute(path, **more):
    """Execute a notebook in a real kernel, in place."""
    return subprocess.run(
        [
            zygote.interpreter(),
            "-m",
            "nbconvert",
            "--execute",
            "--inplace",
            "--to",
            "notebook",
            # else it goes on without what a busy kernel has not shown within four seconds
            f"--ExecutePreprocessor.iopub_timeout={LIMIT}",
            f"--ExecutePreprocessor.startup_timeout={LIMIT}",
            path.name,
        ],
        cwd=path.parent,
        env=notebooks.surroundings(path.parent, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_the_cells_are_thin():
    import nbformat  # takes a second and a half

    book = nbformat.read(notebooks.NOTEBOOK, as_version=4)
    nbformat.validate(book)
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    for source in sources:
        tree = ast.parse(TransformerManager().transform_cell(source))
        assert not [node for node in ast.walk(tree) if isinstance(node, LOGIC)]
        assert len(source.splitlines()) <= 20 and source.startswith("# @title ")
    assert all(cell.metadata["cellView"] == "form" for cell in book.cells[1:])
    assert all(cell.metadata["jupyter"]["source_hidden"] for cell in book.cells[1:])
    own = {target.id for node in ast.parse(sources[1]).body for target in node.targets}
    assert own == {*FIRST_FIELDS, "settings"}
    assert f"'{cahlib.__version__}'" in sources[0]
    assert all(not cell.get("outputs") for cell in book.cells)


def test_settings_are_given_one_by_one_or_together():
    names = {"nickname": "ada", "shards": 0, "crawl": None, "settings": {"seed": 3, "shards": 9}}
    assert notebook.given(names) == {"nickname": "ada", "shards": 0, "seed": 3}
    assert notebook.given({}) == {}


def install(folder, **more):
    """Execute the first cell where cahlib and pip are those of a folder."""
    source = "".join(notebooks.read(notebooks.NOTEBOOK)["cells"][1]["source"])
    lines = "\n".join(source.splitlines()[1:])
    fake = folder / "fake"
    (fake / "pip").mkdir(parents=True, exist_ok=True)
    (fake / "pip" / "__init__.py").touch()
    (fake / "pip" / "__main__.py").write_text(PIP)
    (fake / "cahlib.py").write_text("raise ImportError")
    environment = notebooks.surroundings(folder, PYTHONPATH=str(fake), **more)
    return subprocess.run(
        [sys.executable, "-P", "-c", lines],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


#: Says what it is asked to install, as pip would, or fails.
PIP = """
import os, sys
if sys.argv[1] == "install":
    print("wanted:", sys.argv[-1])
    sys.exit("no network" if "CAH_FAILS" in os.environ else 0)
"""


def test_cahlib_is_installed_from_where_the_notebook_was_opened(tmp_path):
    nothing = install(tmp_path)
    assert nothing.returncode and "put a cahlib-*.whl beside this notebook" in nothing.stderr
    assert "wanted" not in nothing.stdout
    fork = install(tmp_path, CAHLIB_SOURCE="git+https://github.com/ada/cahlib")
    assert fork.returncode == 0, fork.stderr
    assert fork.stdout.endswith("notebook] @ git+https://github.com/ada/cahlib\n")
    (tmp_path / "setup.py").touch()
    assert install(tmp_path).stdout.endswith(f"@ file://{tmp_path}\n")
    (tmp_path / "cahlib-0.1.0-py3-none-any.whl").touch()
    assert install(tmp_path).stdout.endswith(f"@ file://{tmp_path}/cahlib-0.1.0-py3-none-any.whl\n")
    assert install(tmp_path, CAH_FAILS="1").returncode  # the notebook stops there


def test_settings_in_no_text_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("CAH_NICKNAME=Ägidius".encode("latin-1"))
    with pytest.raises(ConfigError, match=".env is not a text file in UTF-8"):
        notebook.form()


@pytest.mark.skipif(not hosts.lacking(), reason="the run with servers shows all of this too.")
def test_an_unattended_run_leaves_a_dataset_and_a_page(tmp_path):
    with world.build().serve() as web:
        job = replace_settings(demo.job("dataset", web), nickname="ada")
        path = notebooks.copy(tmp_path, job.values())
        ran = execute(path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    shown = notebooks.texts(path)
    assert "shards 2/2" in shown and "pd.read_parquet" in shown and "<iframe" in shown
    assert "Traceback" not in shown
    assert list(verify(tmp_path / "dataset")) == []


def test_an_unattended_run_that_cannot_be_fails_with_a_sentence(tmp_path):
    given = {"nickname": "ada", "contact": "a@example.org", "crawl": "no-such-file"}
    ran = execute(notebooks.copy(tmp_path, given))
    assert ran.returncode != 0
    assert "RunError" in ran.stderr and "crawl: no-such-file" in ran.stderr


def test_without_settings_and_without_a_person_nothing_is_started(tmp_path):
    path = notebooks.copy(tmp_path, {})
    ran = execute(path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "Nothing was started" in notebooks.texts(path)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())
def test_an_unattended_run_with_servers_leaves_none_of_them(tmp_path):
    token = "token-of-a-notebook"
    with hosts.Hosts(tmp_path / "hosts") as machines:
        cloud = clouds.Cloud({token: clouds.Account(limit=3)}, hosts=machines)
        with clouds.serve(cloud), world.build().serve(host=machines.address) as web:
            job = replace_settings(demo.job("dataset", web), nickname="ada", swarm=2, max_cost=1)
            path = notebooks.copy(tmp_path, job.values())
            ran = execute(path, HCLOUD_TOKEN=token, HCLOUD_ENDPOINT=cloud.url)
            assert ran.returncode == 0, ran.stderr[-3000:]
            assert cloud.servers() == [] and "POST /servers" in cloud.calls
    shown = notebooks.texts(path)
    assert "the cloud lists none" in shown and "shards 2/2" in shown and "<iframe" in shown
    assert "pd.read_parquet" in shown and "Traceback" not in shown
    assert token not in path.read_text()
    assert list(verify(tmp_path / "dataset")) == []

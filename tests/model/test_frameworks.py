"""Importing torch and open_clip brings no more than they need, and takes nothing from anybody."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("open_clip", reason="judging needs: pip install 'cahlib[gpu]'")

from cahlib.model.frameworks import deferred

#: A package whose `__init__` imports a module of its own that asks it for a name in return.
FILES = {
    "__init__": "from {name}.inner import found\nlater = found + 1\nfrom {name}.round import round",
    "inner": "found = 1",
    "round": "import {name}\nround = hasattr({name}, 'never'), {name}.later",
}


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package that was not imported yet, by its name."""
    name = f"deferred_{abs(hash(request.node.name))}"
    (tmp_path / name).mkdir()
    for module, text in FILES.items():
        (tmp_path / name / f"{module}.py").write_text(text.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_deferred_package_runs_when_it_is_asked(package):
    with deferred([package]):
        inner = __import__(f"{package}.inner").inner
    module = sys.modules[package]
    assert inner.found == 1
    assert not hasattr(module, "__wrapped__")
    assert "later" not in vars(module)
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(
            lambda name: getattr(module, name), ["later", "round", "later", "round"]
        )
        assert list(found) == [2, (False, 2), 2, (False, 2)]
    assert module.inner is inner
    with pytest.raises(AttributeError, match="never"):
        _ = module.never


def test_a_name_is_imported_from_a_deferred_package(package):
    with deferred([package]):
        exec(f"from {package} import later", found := {})
    assert found["later"] == 2


def test_a_deferred_package_that_fails_says_so_each_time(package, tmp_path):
    (tmp_path / package / "inner.py").write_text("raise ImportError('broken')")
    with deferred([package]):
        module = __import__(package)
    for _ in range(2):
        with pytest.raises(ImportError, match="broken"):
            _ = module.later


def test_a_package_that_is_not_there_is_not_found():
    with deferred(["nowhere_at_all"]), pytest.raises(ModuleNotFoundError):
        __import__("nowhere_at_all")


def test_judging_imports_no_compiler():
    script = (
        "import gc, sys, cahlib.model.clip; assert gc.isenabled(); "
        "print(*({'torch._dynamo', 'sympy', 'timm.models', 'torchvision.models.resnet'}"
        " & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []

"""A command's own process leaves some work out, and nobody else's process does."""

import subprocess
import sys

import pytest

pytest.importorskip("pyarrow", reason="the tables of a dataset need: pip install 'cahlib[data]'")
pytest.importorskip("pandas")

from cahlib.core import own_process

SCRIPT = """
import gc, sys
from cahlib.core.own_process import begin_own_process, pandas_hidden, uncollected
begin_own_process()
with uncollected():
    assert not gc.isenabled()
    import pyarrow as pa
assert gc.isenabled() and gc.get_freeze_count()
with pandas_hidden():
    pa.array([0])
table = pa.table({"a": [1, None], "b": ["x", "y"]})
print("pandas" in sys.modules, table.to_pandas().shape, "pandas" in sys.modules)
"""


def test_pyarrow_takes_pandas_when_asked_and_not_before():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "(2,", "2)", "True"]


def test_in_somebody_elses_process_pandas_is_left_alone():
    finders = list(sys.meta_path)
    with own_process.pandas_hidden():
        assert sys.meta_path == finders

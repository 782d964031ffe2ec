"""`clip-retrieval index`, as the guide shows it: the program itself indexes a dataset.

It is installed apart, with the older libraries that it needs and without those of its models, which
indexing does not: some minutes and 400 MB. ``make test-index``. What it reads is tried with every
suite, by its own reader (`tests/dataset/test_shard_writer.py`).
"""

import json
import os
import re
import shlex
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cahlib.dataset.show.pages import write_pages
from cahlib.guide import read_page
from tests.benchmarks.common import venv
from tests.dataset.test_readers import dataset
from tests.world import judged

PINNED = ("autofaiss==2.18.0", "fire<0.6", "pyarrow<16")  # what clip-retrieval 2.45 allows
STACK = judged.ROOT / ".bench" / "index"

pytestmark = [
    pytest.mark.skipif(not os.environ.get("INDEX"), reason="make test-index runs this."),
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="clip-retrieval needs Python 3.12."),
    pytest.mark.timeout(600),
]

NEAREST = """
import faiss, json, numpy, sys
index, names = faiss.read_index(sys.argv[1]), sys.argv[2:]
vectors = numpy.concatenate([numpy.load(name) for name in names]).astype("float32")
print(json.dumps(index.search(vectors, 1)[1][:, 0].tolist()))
"""


@pytest.fixture(scope="module")
def python():
    """A Python with clip-retrieval."""
    own = venv(STACK, *PINNED)
    install = [own, "-m", "pip", "install", "-q", "--no-deps", "clip-retrieval==2.45.0"]
    subprocess.run(install, check=True)
    return own


def shown(text):
    """The arguments of the command in a page's code."""
    (line,) = re.findall(r"^clip-retrieval index (.*)$", text, flags=re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize("page", ["guide", "card"])
def test_it_indexes_every_pair_of_a_dataset(python, tmp_path, page):
    folder = dataset(tmp_path / "my-dataset", ("images", "embeddings"))
    write_pages(folder, {})
    card = (folder / "README.md").read_text(encoding="utf-8")
    text, place = (card, folder) if page == "card" else (read_page("reading"), tmp_path)
    (program,) = STACK.glob("lib/python3*/site-packages/clip_retrieval/clip_index.py")
    words = shown(text)
    subprocess.run([python, program, *words], cwd=place, check=True, capture_output=True)
    made = place / words[words.index("--index_folder") + 1]
    # row by row: as `clip-retrieval back` finds the metadata of what it has found
    tables = [pq.read_table(path) for path in sorted(made.glob("metadata/*.parquet"))]
    assert pa.concat_tables(tables)["uid"].to_pylist() == [
        uid for path in sorted(folder.glob("metadata/*.parquet"))
        for uid in pq.read_table(path)["uid"].to_pylist()
    ]  # fmt: skip
    for kind, name in (("img_emb", "image"), ("text_emb", "text")):
        files = sorted(folder.glob(f"{kind}/*.npy"))
        search = [python, "-c", NEAREST, made / f"{name}.index", *files]
        found = json.loads(subprocess.run(search, check=True, capture_output=True).stdout)
        assert found == [*range(sum(table.num_rows for table in tables))]

"""gpucah.ipynb as somebody else's copy: with settings, in a folder of its own."""

import json
from pathlib import Path

import nbformat

from tests.world.command import ROOT, environment

NOTEBOOK = ROOT / "gpucah.ipynb"


def copy(folder: Path, settings: dict, *, last: str = "") -> Path:
    """The notebook in a folder, with settings in the cell that is for them, and one more cell."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (c for c in book.cells if "parameters" in c.metadata.get("tags", ()))
    cell.source = f"settings = {json.loads(json.dumps(settings))!r}"
    if last:
        book.cells.append(nbformat.v4.new_code_cell(last))
    nbformat.write(book, folder / NOTEBOOK.name)
    return folder / NOTEBOOK.name


def surroundings(home: Path, **more: str) -> dict[str, str]:
    """The environment of a Jupyter that keeps to a home of its own, and finds this cahlib."""
    given = {k: v for k, v in environment().items() if k != "CAH_CONTACT"}
    return given | {"HOME": str(home), "JUPYTER_PLATFORM_DIRS": "1"} | more


def texts(path: Path) -> str:
    """All that the cells of an executed notebook printed and showed."""
    book = nbformat.read(path, as_version=4)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    return "\n".join(json.dumps(output, ensure_ascii=False) for output in outputs)

"""gpucah.ipynb as somebody else's copy: with settings, in a folder of its own.

Read as the JSON that it is: importing nbformat takes a second and a half.
"""

import json
from pathlib import Path
from typing import Any

from tests.world.command import ROOT, environment

NOTEBOOK = ROOT / "gpucah.ipynb"


def copy(folder: Path, settings: dict, *, last: str = "") -> Path:
    """The notebook in a folder, with settings in the cell that is for them, and one more cell."""
    book = read(NOTEBOOK)
    (cell,) = (each for each in book["cells"] if "parameters" in each["metadata"].get("tags", ()))
    cell["source"] = f"settings = {json.loads(json.dumps(settings))!r}"
    if last:
        book["cells"].append(cell | {"id": "last", "metadata": {}, "source": last})
    (folder / NOTEBOOK.name).write_text(json.dumps(book))
    return folder / NOTEBOOK.name


def read(path: Path) -> dict[str, Any]:
    """A notebook's content."""
    book: dict[str, Any] = json.loads(path.read_text())
    return book


def surroundings(home: Path, **more: str) -> dict[str, str]:
    """The environment of a Jupyter that keeps to a home of its own, and finds this cahlib."""
    given = {k: v for k, v in environment().items() if k != "CAH_CONTACT"}
    return given | {"HOME": str(home), "JUPYTER_PLATFORM_DIRS": "1"} | more


def texts(path: Path) -> str:
    """All that the cells of an executed notebook printed and showed."""
    outputs = [output for cell in read(path)["cells"] for output in cell.get("outputs", ())]
    return "\n".join(json.dumps(output, ensure_ascii=False) for output in outputs)

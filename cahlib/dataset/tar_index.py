"""Write what readers of the tars look for beside them: the samples of each, and a card of theirs.

open_clip takes the size of a dataset from `sizes.json`, and others read `nshards.txt`. One card
describes one kind of files to Hugging Face's `datasets`: the dataset's own is for the metadata, so
`images/` has another, which names every extension; without it, what the first five samples do not
have would be dropped. All is made from the manifests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cahlib.dataset import manifest
from cahlib.dataset.layout import ONE_EXTENSION
from cahlib.dataset.manifest import Sealed
from cahlib.dataset.storage.files import files

SIZES, NUMBER, CARD = NAMES = ("images/sizes.json", "images/nshards.txt", "images/README.md")

#: The extensions that pictures may have.
EXTENSIONS = ("jpg", "png", "webp", "avif")

#: How `datasets` calls the types of our columns; a JSON number is always a double.
_DTYPES = {"double": "float64", "float": "float64"}


def size_of(sealed: Sealed) -> dict[str, int]:
    """Return the samples of a shard's tar by its name in its folder; empty if it has none."""
    path = manifest.tar(sealed)
    return {path.rpartition("/")[2]: sealed.rows} if path else {}


def write(
    place: str | Path,
    sizes: Mapping[str, int],
    forms: Iterable[str],
    scores: Iterable[str],
    layout: int,
) -> None:
    """Write the files anew, or remove them where there is no tar."""
    made = {**counts(sizes), CARD: card(forms, scores, layout).encode()} if sizes else {}
    for name in NAMES:
        if name in made:
            files(place).write(name, made[name])
        else:
            files(place).remove(name)


def add(folder: Path, sealed: Sealed) -> None:
    """Add a shard that was just committed; a run that is killed before makes them anew later."""
    if size := size_of(sealed):
        for name, data in counts({**read(folder), **size}).items():
            files(folder).write(name, data)


def read(place: str | Path) -> dict[str, int]:
    """Return the sizes that are at a place; empty if there are none, or they are damaged."""
    there = files(place)
    try:
        found = json.loads(there.read(SIZES)) if there.exists(SIZES) else {}
    except ValueError:
        return {}
    whole = isinstance(found, dict) and all(isinstance(each, int) for each in found.values())
    return found if whole else {}


def faults(place: str | Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the name of each file that counts wrongly, with a sentence.

    ``sizes`` are those of the manifests. A tar that is not counted yet is no fault: its run goes
    on, or was killed before it could count it.
    """
    there = files(place)
    present = {name for name in NAMES if there.exists(name)}
    said = read(place)
    wrong = said.items() - sizes.items()
    for name, data in counts(said).items() if present else ():
        if name not in present:
            yield name, f"{name} is missing."
        elif there.read(name) != data or (wrong and name == SIZES):
            yield name, f"{name} does not count the tars as they are."


def counts(sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Return the files that count, by their names."""
    return {
        SIZES: (json.dumps(dict(sorted(sizes.items())), indent=0) + "\n").encode(),
        NUMBER: f"{len(sizes)}\n".encode(),
    }


def card(forms: Iterable[str], scores: Iterable[str], layout: int) -> str:
    """Return the card of the tars."""
    from cahlib.dataset.write.columns import (
        schema,  # needs pyarrow, which who only counts tars may lack
    )

    jpg = ONE_EXTENSION in forms
    kinds = EXTENSIONS[:1] if jpg else EXTENSIONS
    columns = schema(tuple(scores), reencoded=jpg, layout=layout)
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: images",
            '  data_files: "*.tar"',
            "dataset_info:",
            "- config_name: images",
            "  features:",
            *(f"  - name: {kind}\n    dtype: image" for kind in kinds),
            *(f"  - name: {name}\n    dtype: string" for name in ("txt", "__key__", "__url__")),
            "  - name: json",
            "    struct:",
            *(
                f"    - name: {json.dumps(each.name)}\n"
                f"      dtype: {_DTYPES.get(str(each.type), str(each.type))}"
                for each in columns
            ),
            "---",
            "The pictures of the dataset one folder up, as WebDataset: of each sample a picture "
            f"({', '.join(kinds)}), its text and its metadata. `sizes.json` has the number of "
            "samples of each tar, `nshards.txt` the number of tars.\n",
        ]
    )

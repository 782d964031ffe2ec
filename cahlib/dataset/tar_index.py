"""The files beside the tars that their readers expect: sizes, number, and a card.

open_clip reads the size of a dataset from `sizes.json`, others read `nshards.txt`. A card describes
one kind of files to Hugging Face's `datasets`: the dataset's own is for the metadata, so `images/`
has another, which lists every extension; without it, extensions that the first five samples lack
would be dropped. All are made from the manifests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cahlib.core.table_rows import ExtraColumn
from cahlib.dataset.layout import ONE_EXTENSION
from cahlib.dataset.manifest import ShardManifest, tar_path
from cahlib.dataset.storage.files import files_at

SIZES_FILE, COUNT_FILE, TAR_CARD_FILE = TAR_INDEX_FILES = (
    "images/sizes.json",
    "images/nshards.txt",
    "images/README.md",
)

#: The extensions that images may have.
IMAGE_EXTENSIONS = ("jpg", "png", "webp", "avif")

#: The names of our columns' types in `datasets`; a JSON number is always a double.
_DTYPES = {"double": "float64", "float": "float64"}


def tar_size(manifest: ShardManifest) -> dict[str, int]:
    """Return the number of samples of a shard's tar by its name; empty if it has none."""
    path = tar_path(manifest)
    return {path.rpartition("/")[2]: manifest.rows} if path else {}


def write_tar_index(
    place: str | Path,
    sizes: Mapping[str, int],
    forms: Iterable[str],
    columns: tuple[Sequence[str], Sequence[ExtraColumn]],
    layout: int,
) -> None:
    """Rewrite the files, or remove them if there is no tar.

    ``columns``: those of scores, and those that a table's rows carry along.
    """
    made = (
        {**encode_tar_sizes(sizes), TAR_CARD_FILE: render_tar_card(forms, columns, layout).encode()}
        if sizes
        else {}
    )
    for name in TAR_INDEX_FILES:
        if name in made:
            files_at(place).write(name, made[name])
        else:
            files_at(place).remove(name)


def add_tar(folder: Path, manifest: ShardManifest) -> None:
    """Add a shard that was just committed; if killed before that, a later run rewrites them."""
    if size := tar_size(manifest):
        for name, data in encode_tar_sizes({**read_tar_sizes(folder), **size}).items():
            files_at(folder).write(name, data)


def read_tar_sizes(place: str | Path) -> dict[str, int]:
    """Return the sizes at a place; empty if they are missing or damaged."""
    there = files_at(place)
    try:
        found = json.loads(there.read(SIZES_FILE)) if there.exists(SIZES_FILE) else {}
    except ValueError:
        return {}
    whole = isinstance(found, dict) and all(isinstance(each, int) for each in found.values())
    return found if whole else {}


def check_tar_index(place: str | Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the name of each wrong file, with a sentence.

    ``sizes`` are those of the manifests. A tar that is not counted yet is not an error: its run is
    going on, or was killed before it could count it.
    """
    there = files_at(place)
    present = {name for name in TAR_INDEX_FILES if there.exists(name)}
    said = read_tar_sizes(place)
    wrong = said.items() - sizes.items()
    for name, data in encode_tar_sizes(said).items() if present else ():
        if name not in present:
            yield name, f"{name} is missing."
        elif there.read(name) != data or (wrong and name == SIZES_FILE):
            yield name, f"{name} does not match the tars."


def encode_tar_sizes(sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Return the content of the files with sizes and number, by name."""
    return {
        SIZES_FILE: (json.dumps(dict(sorted(sizes.items())), indent=0) + "\n").encode(),
        COUNT_FILE: f"{len(sizes)}\n".encode(),
    }


def render_tar_card(
    forms: Iterable[str], columns: tuple[Sequence[str], Sequence[ExtraColumn]], layout: int
) -> str:
    """Return the card of the tars; ``columns`` as for `write_tar_index`."""
    from cahlib.dataset.write.columns import arrow_schema

    jpg = ONE_EXTENSION in forms
    kinds = IMAGE_EXTENSIONS[:1] if jpg else IMAGE_EXTENSIONS
    scores, extras = columns
    schema = arrow_schema(scores, extras=extras, reencoded=jpg, layout=layout)
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
                for each in schema
            ),
            "---",
            "The pictures of the dataset one folder up, as WebDataset: of each sample a picture "
            f"({', '.join(kinds)}), its text and its metadata. `sizes.json` has the number of "
            "samples of each tar, `nshards.txt` the number of tars.\n",
        ]
    )

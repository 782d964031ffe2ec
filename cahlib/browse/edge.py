"""The pairs at the cut of a selection, with their pictures."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image as Picture

from cahlib.browse.pictures import PictureFiles, PictureUnreadable
from cahlib.dataset.maintain.selection import Selection
from cahlib.dataset.manifest import read_manifest
from cahlib.dataset.show.selection_page import Edge, EdgePair
from cahlib.dataset.write.columns import Row
from cahlib.dataset.write.gallery import Thumbnail, is_cheap, make_thumbnail
from cahlib.dataset.write.shard_writer import read_uids

#: Pairs on each side.
_EACH = 12


def read_edge(place: str, selection: Selection) -> Edge:
    """Return the pairs nearest to the cut; raise RunError if their shards cannot be read."""
    above, below = (rows.tolist() for rows in selection.edge(_EACH))
    pairs = selection.pairs
    shards = {pairs.locate(row)[0].shard for row in (*above, *below)}
    found = (read_manifest(place, shard) for shard in sorted(shards))
    manifests = {each.shard.id: each for each in found if each}
    files = PictureFiles(
        [*manifests.values()], place, lambda shard: read_uids(place, manifests[shard])
    )

    def shown(rows: list[int]) -> Iterator[EdgePair]:
        for row, values in zip(rows, pairs.read(rows), strict=True):
            yield EdgePair(values, float(selection.values[row]), _thumbnail(files, values))

    return Edge(above=[*shown(above)], below=[*shown(below)])


def _thumbnail(files: PictureFiles, row: Row) -> Thumbnail | None:
    """Return the thumbnail of a pair, unrecognizable unless it is UNLIKELY to be unsafe."""
    if not files or not is_cheap(0, row["WIDTH"] * row["HEIGHT"]):
        return None
    try:
        data = files.read(row["shard"], row["position"]).data
        if is_cheap(len(data), 0):
            return make_thumbnail(data, blur=row["NSFW"] != "UNLIKELY")
    except (PictureUnreadable, OSError, ValueError, Picture.DecompressionBombError):
        pass  # `cah verify` says what is wrong with it
    return None

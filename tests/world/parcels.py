"""A small parcel, written as a run writes it."""

import json

import msgspec

from cahlib.core.records import OptOut, Shard, Stats
from cahlib.parcel import parcel as parcels
from cahlib.parcel.metadata import ImageMetadata
from cahlib.parcel.tar import TarWriter
from tests.world.pictures import image

SHARD = Shard(id="CC-MAIN-1-2.0", url="https://data.example/1.wat.gz", half=0)
OPTOUT = OptOut(url="http://a/b", where="http://a/c", signal="x-robots-tag", value="noai", time=1.5)
POSITIONS = [3, 0, 7, 1]


def written(folder, positions=POSITIONS, **how):
    return parcels.write_parcel(map(image, positions), SHARD, folder, stats=Stats(), **how)


def first_layout(folder, positions):
    """A parcel as cahlib wrote them before there was one file of metadata."""
    parcel = written(folder, positions)
    with TarWriter(parcel.path.with_suffix(".new")) as tar:
        for each in map(image, positions):
            tar.add(f"{each.candidate.uid}.jpg", each.data)
            told = {name: getattr(each, name) for name in ImageMetadata.__struct_fields__}
            tar.add(f"{each.candidate.uid}.json", msgspec.json.encode(told))
    parcel.path.with_suffix(".new").rename(parcel.path)
    manifest = parcel.path.with_suffix(".json")
    told = {**json.loads(manifest.read_text()), "layout": 1, "sha256": tar.sha256, "size": tar.size}
    del told["index"]
    manifest.write_text(json.dumps(told))
    return parcels.find_parcel(folder, SHARD)


UID = image(0).candidate.uid

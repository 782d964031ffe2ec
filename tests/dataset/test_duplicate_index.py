"""No image twice in a run that is told so, by bytes or by looks, through failures and restarts."""

from dataclasses import replace
from hashlib import sha256

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.config import Output
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.maintain.dedup import find_duplicates
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.write.duplicate_index import load_duplicate_index
from cahlib.dataset.write.shard_writer import ScoredParcel, read_uids, write_shard
from cahlib.image.perceptual_hash import NearIndex
from tests.dataset.test_dedup import drawn, saved, shown
from tests.world import judged as world


class Run:
    """A run's dataset and what it knows, launch after launch, without a model."""

    def __init__(self, folder, kind):
        self.options = Output(output=str(folder), duplicates=kind)
        self.shards, self.uids = [], set()
        self.launch()

    def launch(self):
        self.known = load_duplicate_index(self.options, self.shards, seen=self.uids.__contains__)

    def write(self, name, made, *, fails=False):
        """Why each image was dropped, or None."""
        told = []

        def listen(each):
            told.append(self.known.find_duplicate(each))
            return told[-1]

        self.known.begin_shard()
        manifest = write_shard(
            self.options.folder,
            self.broken(made) if fails else made,
            ScoredParcel(parcel=world.parcel(name, images=len(made)), stats=world.stats_of(made)),
            spec=world.SPEC,
            again=listen,
        )
        assert manifest.stats.unaccounted(Stage.JUDGE) == 0
        self.uids.update(read_uids(self.options.folder, manifest))
        self.shards.append(manifest.shard)
        self.known.commit_shard()
        return told

    def broken(self, made):
        yield from made
        raise OSError("the parcel broke off")


def a_second_one(number, of):
    """Another pair with the very file of one."""
    other = shown(number, drawn(99))
    same = {name: getattr(of.image, name) for name in ("data", "sha256", "width", "height")}
    return replace(other, image=replace(other.image, **same))


def distinct(number, picture):
    """With the hash of its own bytes, as a scraper gives it."""
    made = shown(number, picture)
    return replace(made, image=replace(made.image, sha256=sha256(made.image.data).hexdigest()))


@pytest.fixture
def first():
    return [distinct(number, drawn(number)) for number in range(4)]


@pytest.fixture
def second(first):
    """The same file, the same look in another size, something new, and the new thing again."""
    new = distinct(7, drawn(7))
    return [
        a_second_one(5, of=first[0]),
        distinct(6, drawn(1, (640, 480))),
        new,
        a_second_one(8, of=new),
    ]


DROP_REASONS = {
    "keep": [None, None, None, None],
    "same": [DropReason.SAME_IMAGE, None, None, DropReason.SAME_IMAGE],
    "near": [DropReason.SAME_IMAGE, DropReason.NEAR_DUPLICATE, None, DropReason.SAME_IMAGE],
}


@pytest.mark.parametrize("kind", DROP_REASONS)
def test_an_image_that_the_run_has_is_left_out_after_a_restart_too(tmp_path, first, second, kind):
    for restart in (False, True):
        run = Run(tmp_path / str(restart), kind)
        assert run.write("s-0", first) == [None] * 4
        with pytest.raises(OSError, match="broke off"):
            run.write("s-1", second, fails=True)
        if restart:
            run.launch()
        # what the failed attempt saw is no duplicate of itself
        assert run.write("s-1", second) == DROP_REASONS[kind]
        rows = pq.read_table(run.options.folder / "metadata").num_rows
        assert rows == 4 + DROP_REASONS[kind].count(None)
        assert list(verify(run.options.folder)) == []
    if kind == "near":
        assert len(find_duplicates(run.options.folder, 4).extra) == 0


def test_a_pair_that_is_there_is_called_so(tmp_path, first):
    run = Run(tmp_path, "near")
    run.write("s-0", first)
    assert run.write("s-1", first) == [DropReason.PAIR_SEEN] * 4


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    st.integers(0, 4),
    st.sets(st.integers(0, 63), max_size=10),
    st.integers(0, 8),
)
def test_a_hash_is_near_exactly_if_so_few_bits_differ(hashes, of, flipped, distance):
    near = NearIndex(distance)
    for each in hashes:
        near.add(each)
    looks = hashes[of % len(hashes)] ^ sum(1 << bit for bit in flipped)
    assert (looks in near) == any((looks ^ each).bit_count() <= distance for each in hashes)


def test_the_file_of_a_picture_does_not_matter_to_its_looks(tmp_path):
    run = Run(tmp_path, "near")
    run.write("s-0", [distinct(1, drawn(1))])
    poor, data = shown(2, drawn(1)), saved(drawn(1), quality=40)
    poor = replace(poor, image=replace(poor.image, data=data, sha256=sha256(data).hexdigest()))
    assert run.write("s-1", [poor]) == [DropReason.NEAR_DUPLICATE]

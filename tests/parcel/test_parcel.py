"""Parcels: written, recognised, read back, and mistrusted."""

import dataclasses
import hashlib
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest

from cahlib import __version__
from cahlib.core.errors import RunError, ShardError
from cahlib.core.records import DropReason, Evidence, Stage, Stats
from cahlib.parcel import parcel as parcels
from cahlib.parcel.tar import TarWriter, parcel_disk
from tests.world.parcels import OPTOUT, POSITIONS, SHARD, first_layout, written
from tests.world.pictures import candidate, image

ROOT = Path(__file__).parent.parent.parent


def test_images_come_back_in_the_order_of_the_page(tmp_path):
    parcel = written(tmp_path)
    assert parcel.images == 4
    parcels.check_parcel(parcel)
    assert list(parcels.read_images(parcel)) == [image(position) for position in sorted(POSITIONS)]


def test_everything_that_is_known_about_an_image_comes_back(tmp_path):
    strange = dataclasses.replace(
        image(5),
        data=b"\0" * 1000,
        format="webp",
        width=1,
        height=2,
        original_width=3,
        robots="noai\ngooglebot: none",
        phash="0123456789abcdef",
        chroma="8080808080808080",
        thumb=b"\xff" * 700,
        candidate=dataclasses.replace(
            candidate("http://a/b", 5, '"Ümläut" \n 😀'), raw_text="Ã¼", page="", reliable=False
        ),
    )
    parcel = parcels.write_parcel([strange], SHARD, tmp_path, stats=Stats())
    assert list(parcels.read_images(parcel)) == [strange]
    with tarfile.open(parcel.path) as tar:
        assert [member.name.partition(".")[2] for member in tar] == ["webp", "thumb", "jsonl"]


def test_of_a_strangers_parcel_only_the_images_count(tmp_path):
    told = dataclasses.replace(image(0), phash="0" * 16, chroma="0" * 16, thumb=b"another picture")
    parcel = parcels.write_parcel([told], SHARD, tmp_path, stats=Stats())
    assert list(parcels.read_images(parcel, trusted=False)) == [image(0)]


def test_a_parcel_of_the_first_layout_is_still_read(tmp_path):
    parcel = first_layout(tmp_path, POSITIONS)
    assert parcel == parcels.find_parcel(tmp_path, SHARD)
    parcels.check_parcel(parcel)
    assert list(parcels.read_images(parcel)) == [image(position) for position in sorted(POSITIONS)]


def test_a_written_parcel_is_recognised_with_all_it_says(tmp_path):
    def arriving(stats, evidence):
        for number in range(3):
            stats.entered[Stage.FETCH] += 2
            stats.left[Stage.FETCH] += 1
            stats.dropped[DropReason.OPTED_OUT] += 1
            evidence.optouts.append(OPTOUT)
            yield image(number)

    stats, evidence, clock = Stats(), Evidence(), iter([10.0, 20.0])
    parcel = parcels.write_parcel(
        arriving(stats, evidence),
        SHARD,
        tmp_path,
        stats=stats,
        evidence=evidence,
        clock=lambda: next(clock),
    )
    assert parcel == parcels.find_parcel(tmp_path, SHARD)
    assert parcel.stats == stats
    assert parcel.optouts == (OPTOUT,) * 3
    assert (parcel.started, parcel.finished) == (10.0, 20.0)
    assert parcel.versions["cahlib"] == __version__
    assert {"python", "pillow", "aiohttp"} <= parcel.versions.keys()
    assert parcel.size == parcel.path.stat().st_size
    assert parcel.sha256 == hashlib.sha256(parcel.path.read_bytes()).hexdigest()
    assert {path.name for path in tmp_path.iterdir()} == {f"{SHARD.id}.tar", f"{SHARD.id}.json"}


@pytest.mark.parametrize("size", [0, 7, 511, 512, 112_000])
@pytest.mark.parametrize("name", [f"{'a' * 32}.json", "a.jpg", "b" * 100])
def test_headers_are_those_of_tarfile(tmp_path, name, size):
    with TarWriter(tmp_path / "a.tar") as writer:
        writer.add(name, bytes(size))
    info = tarfile.TarInfo(name)
    info.size = size
    assert (tmp_path / "a.tar").read_bytes()[:512] == info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match="does not fit"), TarWriter(tmp_path / "b.tar") as writer:
        writer.add("c" * 101, b"")


def test_the_tar_is_the_same_whenever_and_wherever_it_is_made(tmp_path):
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert first.sha256 == second.sha256
    with tarfile.open(first.path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_what_nobody_would_read_is_not_written(tmp_path):
    long = dataclasses.replace(image(0), robots="x" * 7_900_000)
    assert list(
        parcels.read_images(parcels.write_parcel([long], SHARD, tmp_path, stats=Stats()))
    ) == [long]
    with pytest.raises(ShardError, match="metadata of http://images.example/0.jpg is too long"):
        parcels.write_parcel(
            [dataclasses.replace(long, robots="x" * 9_000_000)], SHARD, tmp_path, stats=Stats()
        )


def test_a_shard_without_images_is_a_parcel_too(tmp_path):
    parcel = written(tmp_path, [])
    parcels.check_parcel(parcel)
    assert list(parcels.read_images(parcel)) == []
    assert parcels.find_parcel(tmp_path, SHARD) == parcel


def test_what_fails_leaves_nothing_behind(tmp_path):
    closed = []

    def failing():
        try:
            yield image(0)
            raise ShardError("The WAT broke off.")
        finally:
            closed.append(True)

    with pytest.raises(ShardError, match="broke off"):
        parcels.write_parcel(failing(), SHARD, tmp_path, stats=Stats())
    assert list(tmp_path.iterdir()) == []
    assert closed


def test_writing_again_replaces_what_was_there(tmp_path):
    written(tmp_path)
    parcel = written(tmp_path, [8])
    assert [image.candidate.position for image in parcels.read_images(parcel)] == [8]
    assert parcels.find_parcel(tmp_path, SHARD) == parcel


def test_a_parcel_without_its_manifest_is_rubbish(tmp_path):
    parcel = written(tmp_path)
    manifest = tmp_path / f"{SHARD.id}.json"
    whole = manifest.read_text()
    other = dataclasses.replace(SHARD, id=SHARD.id + ".1")
    for other_half in (dataclasses.replace(SHARD, half=1), other):
        assert parcels.find_parcel(tmp_path, other_half) is None
    for rubbish in (
        "",
        "{",
        "[]",
        "nonsense",
        whole[:-9],
        whole.replace('"layout": 2', '"layout": 3'),
        whole.replace('"layout": 2', '"layout": 1'),
    ):
        manifest.write_text(rubbish)
        assert parcels.find_parcel(tmp_path, SHARD) is None
    manifest.write_bytes(b"\xff\xfe")
    assert parcels.find_parcel(tmp_path, SHARD) is None
    manifest.write_text(whole)
    assert parcels.find_parcel(tmp_path, SHARD) == parcel
    with parcel.path.open("ab") as file:
        file.write(b"more")
    assert parcels.find_parcel(tmp_path, SHARD) is None
    parcel.path.unlink()
    assert parcels.find_parcel(tmp_path, SHARD) is None


def test_a_discarded_parcel_is_gone_and_no_other_one(tmp_path):
    written(tmp_path)
    other = dataclasses.replace(SHARD, id=SHARD.id + ".1")
    kept = parcels.write_parcel([image(1)], other, tmp_path, stats=Stats())
    (tmp_path / f"{SHARD.id}.0123abcd.part").touch()
    (tmp_path / f"{SHARD.id}.0123abcd.json.part").touch()
    (tmp_path / f"{other.id}.0123abcd.part").touch()
    parcels.delete_parcel(tmp_path, SHARD)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{other.id}.tar",
        f"{other.id}.json",
        f"{other.id}.0123abcd.part",
    }
    assert parcels.find_parcel(tmp_path, other) == kept
    parcels.delete_parcel(tmp_path / "absent", SHARD)


def test_trouble_with_the_disk_is_said_in_one_sentence(tmp_path):
    with pytest.raises(RunError, match="No space is left for .* Make room, then"):
        with parcel_disk(tmp_path), open("/dev/full", "wb", buffering=0) as file:
            file.write(b"more")
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match="Cannot write a parcel to .*/file: "):
        written(tmp_path / "file")


def test_a_killed_worker_leaves_rubbish_that_the_next_one_clears_away(tmp_path):
    script = """
        import sys, time
        from pathlib import Path
        from cahlib.core.records import Shard, Stats
        from cahlib.parcel import parcel
        from tests.world.pictures import image
        def images():
            yield from map(image, range(3))
            print("half done", flush=True)
            time.sleep(100)
        shard = Shard(id=sys.argv[2], url="", half=0)
        parcel.write_parcel(images(), shard, Path(sys.argv[1]), stats=Stats())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), SHARD.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout.readline() == b"half done\n"
        worker.kill()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert parcels.find_parcel(tmp_path, SHARD) is None
    parcel = written(tmp_path)
    assert parcels.find_parcel(tmp_path, SHARD) == parcel
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lost_worker_cannot_spoil_what_another_one_wrote(tmp_path):
    """Both write the same shard; whoever comes last, tar and manifest are of one of them."""

    def lost():
        yield image(1)
        written(tmp_path, [2, 3])  # the other one, meanwhile
        yield image(4)

    with pytest.raises(ShardError, match="No such file"):
        parcels.write_parcel(lost(), SHARD, tmp_path, stats=Stats())
    parcel = parcels.find_parcel(tmp_path, SHARD)
    parcels.check_parcel(parcel)
    assert [image.candidate.position for image in parcels.read_images(parcel)] == [2, 3]


# What a hostile or broken machine may send.


def test_a_damaged_parcel_is_found_by_its_checksum(tmp_path):
    parcel = written(tmp_path)
    data = bytearray(parcel.path.read_bytes())
    data[5000] ^= 1
    parcel.path.write_bytes(data)
    with pytest.raises(ShardError, match="is damaged"):
        parcels.check_parcel(parcel)


def test_an_absent_parcel_is_said_to_be_absent(tmp_path):
    parcel = written(tmp_path)
    parcel.path.unlink()
    for use in (parcels.check_parcel, lambda parcel: list(parcels.read_images(parcel))):
        with pytest.raises(ShardError, match="No such file"):
            use(parcel)

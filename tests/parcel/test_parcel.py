"""Parcels: written, recognised, read back, and mistrusted."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import textwrap
from contextlib import nullcontext, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahlib import __version__
from cahlib.core.errors import RunError, ShardError
from cahlib.core.records import DropReason, Evidence, OptOut, Shard, Stage, Stats
from cahlib.parcel import parcel as parcels
from cahlib.parcel.metadata import ImageMetadata
from cahlib.parcel.tar import TarWriter, parcel_disk
from tests.world.pictures import candidate, image

ROOT = Path(__file__).parent.parent.parent
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


UID = image(0).candidate.uid


def rewritten(parcel, change):
    """The same parcel with another tar: ``change(name, data)`` gives the members instead of one."""
    file = io.BytesIO()
    with tarfile.open(parcel.path) as old, tarfile.open(fileobj=file, mode="w") as new:
        for member in old:
            for info, data in change(member, old.extractfile(member).read()):
                info.size = len(data) if info.isreg() else 0
                new.addfile(info, io.BytesIO(data))
    data = file.getvalue()
    used = (len(data.rstrip(b"\0")) + 511) // 512 * 512
    parcel.path.write_bytes(data[:used] + bytes(1024))
    return parcel


def named(name, **values):
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def edited(text, /, **values):
    said = json.loads(text)
    said.update(values)
    return json.dumps(said).encode()


def on_text(change):
    return lambda member, data: [(member, change(data) if member.name.endswith("json") else data)]


EVIL = {
    "a path upwards": lambda member, data: [(named("../../" + member.name), data)],
    "an absolute path": lambda member, data: [(named("/" + member.name), data)],
    "a folder": lambda member, data: [(member, data), (named("a", type=tarfile.DIRTYPE), b"")],
    "a link": lambda member, data: [
        (named(member.name, type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")
    ],
    "a hard link": lambda member, data: [
        (named(member.name, type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")
    ],
    "a device": lambda member, data: [(named(member.name, type=tarfile.CHRTYPE), b"")],
    "a pipe": lambda member, data: [(named(member.name, type=tarfile.FIFOTYPE), b"")],
    "a long name": lambda member, data: [(named("a" * 200), data)],
    "another kind": lambda member, data: [(named(UID + ".exe"), data)],
    "no text": lambda member, data: [] if member.name.endswith("json") else [(member, data)],
    "no image": lambda member, data: [(member, data)] if member.name.endswith("json") else [],
    "one too many": lambda member, data: [(member, data)] * 2,
    "none": lambda member, data: [],
    "text that is no text": on_text(lambda data: b"\xff" + data),
    "text in pieces": on_text(lambda data: data[:-1]),
    "deep text": on_text(lambda data: b"[" * 500_000),
    "deep text inside": on_text(
        lambda data: data.replace(b'"uid"', b'"x":' + b"[" * 300_000 + b"]" * 300_000 + b',"uid"')
    ),
    "endless text": on_text(lambda data: data[:-1] + b" " * 9_000_000 + b"}"),
    "a size in words": on_text(lambda data: edited(data, width="wide")),
    "more pixels than can be": on_text(lambda data: edited(data, original_width=2**31)),
    "a hash that is none": on_text(lambda data: edited(data, sha256="0x" + "0" * 62)),
    "another's key": on_text(lambda data: data.replace(b'"text":"', b'"text":"another ')),
    "an unknown field": on_text(lambda data: edited(data, more=1)),
    "a missing field": on_text(lambda data: data.replace(b'"md5"', b'"md4"')),
    "another's name": on_text(lambda data: data.replace(UID.encode(), b"0" * 32)),
    "one position twice": on_text(lambda data: data.replace(b'"position":1', b'"position":0')),
}


@pytest.mark.parametrize("evil", EVIL)
def test_a_hostile_tar_is_refused(tmp_path, evil):
    parcel = first_layout(tmp_path, [0, 1])
    with pytest.raises(ShardError, match="has to be scraped again"):
        list(parcels.read_images(rewritten(parcel, EVIL[evil])))
    assert len(list(tmp_path.iterdir())) == 2


def on_lines(**values):
    return lambda text: b"".join(edited(line, **values) + b"\n" for line in text.splitlines())


EVIL_LINES = {
    "none": lambda text: b"",
    "one too few": lambda text: text.splitlines(keepends=True)[0],
    "one twice": lambda text: 2 * text.splitlines(keepends=True)[0],
    "another order": lambda text: b"".join(text.splitlines(keepends=True)[::-1]),
    "no text": lambda text: b"\xff" + text,
    "text in pieces": lambda text: text[:-9],
    "deep text": lambda text: b"[" * 500_000,
    "endless text": lambda text: text.replace(b"{", b"{" + b" " * 9_000_000, 1),
    "a size in words": on_lines(width="wide"),
    "more pixels than can be": on_lines(original_width=2**31),
    "a hash that is none": on_lines(sha256="0x" + "0" * 62),
    "a perceptual hash that is none": on_lines(phash="-00000000000001e"),
    "another's key": lambda text: text.replace(b'"text":"', b'"text":"another '),
    "an unknown field": on_lines(more=1),
    "a missing field": lambda text: text.replace(b'"md5"', b'"md4"'),
    "another kind": on_lines(format="exe"),
    "bytes before the tar": on_lines(data=[-512, 600]),
    "bytes behind it": on_lines(data=[512, 2**40]),
    "bytes far behind it": on_lines(thumb=[2**61, 2**61]),
    "bytes beyond numbers": on_lines(data=[2**64, 1]),
    "all bytes for each image": lambda text: on_lines(data=[0, 20_000])(text),
}


@pytest.mark.parametrize("evil", EVIL_LINES)
def test_a_hostile_index_is_refused(tmp_path, evil):
    parcel = written(tmp_path, [0, 1])
    data = parcel.path.read_bytes()
    lines = data[parcel.index :].rstrip(b"\0")
    parcel.path.write_bytes(data[: parcel.index] + EVIL_LINES[evil](lines))
    with pytest.raises(ShardError, match="has to be scraped again"):
        list(parcels.read_images(parcel))


@pytest.mark.parametrize("index", [-1, 1, 2**40, 2**70])
def test_an_index_that_lies_elsewhere_is_refused(tmp_path, index):
    parcel = dataclasses.replace(written(tmp_path), index=index)
    with pytest.raises(ShardError, match="has to be scraped again"):
        list(parcels.read_images(parcel))


def test_absurd_sizes_are_refused(tmp_path):
    parcel = first_layout(tmp_path, [0])
    data = parcel.path.read_bytes()
    for size in (len(data), 10**9, 8**11 - 1, 2**62, -512):
        info = named(f"{UID}.jpg", size=size)
        parcel.path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + data[512:])
        with pytest.raises(ShardError, match="has to be scraped again"):
            list(parcels.read_images(parcel))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    parcel = written(tmp_path_factory.mktemp("whole"), [1, 0])
    manifest = parcel.path.parent / f"{SHARD.id}.json"
    return parcel, parcel.path.read_bytes(), manifest.read_bytes()


@settings(deadline=None)
@given(st.data())
def test_a_damaged_tar_is_found_and_its_reader_raises_nothing_else(whole, data):
    parcel, original, _ = whole
    damaged = bytearray(original)
    for at in data.draw(st.lists(st.integers(0, len(original) - 1), max_size=5)):
        damaged[at] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(original)) | st.just(len(original)))]
    parcel.path.write_bytes(damaged)
    with suppress(ShardError):
        assert len(list(parcels.read_images(parcel))) == 2
    with nullcontext() if damaged == original else pytest.raises(ShardError):
        parcels.check_parcel(parcel)


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_garbage_is_no_tar(whole, garbage):
    parcel, *_ = whole
    parcel.path.write_bytes(garbage)
    with pytest.raises(ShardError):
        list(parcels.read_images(parcel))


@settings(deadline=None)
@given(st.data())
def test_a_damaged_manifest_is_rubbish_or_still_means_this_parcel(whole, data):
    parcel, original, manifest = whole
    parcel.path.write_bytes(original)
    damaged = bytearray(manifest)
    for at in data.draw(st.lists(st.integers(0, 999), max_size=3)):
        damaged[at % len(damaged)] = data.draw(st.integers(0, 255))
    (parcel.path.parent / f"{SHARD.id}.json").write_bytes(damaged[: data.draw(st.integers(0, 999))])
    found = parcels.find_parcel(parcel.path.parent, SHARD)
    assert found is None or (found.path, found.size) == (parcel.path, parcel.size)

"""Parcels that strangers made, or a disk damaged: refused in a sentence."""

import dataclasses
import io
import json
import tarfile
from contextlib import nullcontext, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahlib.core.errors import ShardError
from cahlib.parcel import parcel as parcels
from tests.world.parcels import SHARD, UID, first_layout, written


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

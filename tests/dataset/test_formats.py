"""TFRecord as TensorFlow itself writes and reads it, and what a file in the making leaves."""

import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.hashed_file import HashedFile
from cahlib.dataset.write.columns import sample_id
from cahlib.dataset.write.formats import tar_header
from cahlib.dataset.write.tfrecord import (
    DamagedRecord,
    encode_example,
    frame_record,
    read_tfrecords,
)
from cahlib.guide import read_page
from tests.world import judged as world

_VALUES = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.binary(max_size=300) | st.integers(0, 2**63 - 1),
    max_size=6,
)


@pytest.mark.parametrize("name", [f"{'a' * 32}.jpg", "b" * 100, f"{'c' * 60}/{'d' * 90}", "ü.jpg"])
def test_a_tar_has_the_headers_that_tarfile_makes(name):
    for size in (0, 1, 8**10 + 511, 8**11 - 1):
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@given(st.lists(_VALUES, max_size=5))
def test_what_is_written_is_read(rows):
    file = io.BytesIO(b"".join(frame_record(encode_example(row)) for row in rows))
    assert list(read_tfrecords(file)) == rows


@given(st.data())
@example(None)
def test_a_damaged_byte_is_found(data):
    whole = frame_record(encode_example({"label": b"a caption", "width": 300}))
    at = data.draw(st.integers(0, len(whole) - 1)) if data else 0
    damaged = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
    with pytest.raises(DamagedRecord):
        list(read_tfrecords(io.BytesIO(damaged)))


@given(st.binary(max_size=60))
def test_garbage_is_broken_and_nothing_else(data):
    for file in io.BytesIO(data), io.BytesIO(frame_record(data)):
        try:
            list(read_tfrecords(file))
        except DamagedRecord:
            pass


def test_the_bytes_are_those_that_tensorflow_writes():
    # tf.io.TFRecordWriter(path).write(tf.train.Example(…).SerializeToString(deterministic=True))
    # by TensorFlow 2.21, of {"height": [300], "label": [b"hi"]}
    assert frame_record(encode_example({"label": b"hi", "height": 300})).hex() == (
        "2500000000000000eabc36f30a230a100a0668656967687412061a040a02ac02"
        "0a0f0a056c6162656c12060a040a02686923cb6aec"
    )


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="TensorFlow is not installed: pip install tensorflow-cpu",
)
def test_tensorflow_reads_our_files(tmp_path):
    """In a process of its own: TensorFlow takes seconds to load, and is no friend of torch's."""
    made = [each for each in world.some(30)[0] if each.reason is None]
    world.write(tmp_path)
    write_pages(tmp_path, {})
    markdown = (tmp_path / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(import glob, tensorflow.*?)```", markdown, flags=re.DOTALL)
    script = (
        shown
        + """
import json
for record in records:
    each = tf.io.parse_single_example(record, kinds)
    each = {name: value.numpy() for name, value in each.items()}
    texts = {name: each[name].decode() for name in ["sampleID", "format", "label"]}
    image = each["image"]
    shape = tf.io.decode_image(image).shape.as_list() if texts["format"] in ("jpg", "png") else None
    print(json.dumps({**texts, "image": image.hex(), "shape": shape,
                      "height": int(each["height"]), "width": int(each["width"])}))
"""
    )
    (guide,) = re.findall(r"```python\n(import glob\n.*?)```", read_page("reading"), re.DOTALL)
    command = [sys.executable, "-c", script + guide.replace("my-dataset", ".")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    labels = [pair.image.candidate.text for pair in made]
    assert ran.stdout.splitlines()[-len(labels) :] == labels
    for pair, row in zip(made, found, strict=True):
        image = pair.image
        assert row["sampleID"] == str(sample_id(image.candidate.uid))
        assert row["label"] == image.candidate.text
        assert bytes.fromhex(row["image"]) == image.data
        assert (row["format"], row["height"], row["width"]) == (
            image.format,
            image.height,
            image.width,
        )
        assert row["shape"] in (None, [image.height, image.width, 3])


def test_a_file_has_its_name_only_when_it_is_published(tmp_path):
    file = HashedFile(tmp_path / "a.tar")
    file.write(b"abc")
    stored = file.close()
    assert not (tmp_path / "a.tar").exists()
    file.publish()
    assert (tmp_path / "a.tar").read_bytes() == b"abc"
    assert stored.size == 3 and stored.sha256.startswith("ba7816bf")


def test_a_discarded_file_leaves_nothing(tmp_path):
    file = HashedFile(tmp_path / "a.tar")
    file.scratch().write(b"x")
    file.discard()
    assert list(tmp_path.iterdir()) == []

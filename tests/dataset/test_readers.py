"""The readers that people train and search with read every pair of a dataset, in both forms."""

import importlib.util
import json
import re
import subprocess
import sys
import tarfile
from functools import partial
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from cahlib.core.records import DropReason
from cahlib.dataset.maintain.rewrite import rewrite_shards
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.tar_index import COUNT_FILE, read_tar_sizes
from cahlib.dataset.write.columns import REENCODED_FROM
from cahlib.guide import read_page
from tests.world import judged as world

FORMS = {"plain": ("images", "embeddings"), "jpg": ("images:jpg", "embeddings")}

#: Shards of a dataset, by their first picture; one in the middle has no pairs.
SHARDS = {"s-00000": 0, "s-00001": 100, "s-00002": None, "s-00003": 200}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of each form, made once: its folder."""
    return {name: dataset(tmp_path_factory.mktemp(name), forms) for name, forms in FORMS.items()}


def dataset(folder, forms):
    spec = world.with_forms(*forms)
    for shard, first in SHARDS.items():
        if first is None:
            nothing = [world.judged(900, reason=DropReason.DISSIMILAR)]
            world.write_these(folder, nothing, shard=shard, spec=spec)
        else:
            world.write(folder, first=first, shard=shard, spec=spec)
    write_pages(folder, {})
    return folder


def kept():
    """The pairs of such a dataset, by uid."""
    firsts = [first for first in SHARDS.values() if first is not None]
    every = (each for first in firsts for each in world.some(30, first=first)[0])
    return {each.image.candidate.uid: each for each in every if each.reason is None}


def listed(folder):
    return sorted(str(path) for path in (folder / "images").glob("*.tar"))


both = pytest.mark.parametrize("form", FORMS)


def card():
    """The text of the card in this folder."""
    return Path("README.md").read_text(encoding="utf-8")


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"needs: pip install {package}"
    )


@both
def test_a_dataset_of_either_form_is_sound(made, form):
    assert list(verify(made[form])) == []


@both
def test_no_sample_has_a_null_and_all_have_the_same_fields(made, form):
    fields, found = set(), 0
    for path in listed(made[form]):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    values = json.load(tar.extractfile(member))
                    assert None not in values.values()
                    fields.add(tuple((name, type(value)) for name, value in values.items()))
                    found += 1
    assert len(fields) == 1 and found == len(kept())


def test_pictures_of_one_extension_are_the_same_pictures(made):
    pairs, kinds = kept(), set()
    for path in listed(made["jpg"]):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            uid, kind = name.split(".")
            if kind not in ("json", "txt"):
                assert kind == "jpg"
                row = json.loads(members[f"{uid}.json"])
                image = pairs[uid].image
                assert row[REENCODED_FROM] == ("" if image.format == "jpg" else image.format)
                assert (data == image.data) == (image.format == "jpg")
                assert (row["md5"], row["format"]) == (image.md5, "jpg")  # as it was served
                with Picture.open(BytesIO(data)) as one, Picture.open(BytesIO(image.data)) as other:
                    assert one.format == "JPEG" and one.size == other.size
                    small = [each.convert("RGB").resize((4, 4)).tobytes() for each in (one, other)]
                assert max(abs(a - b) for a, b in zip(*small, strict=True)) < 12
                kinds.add(row[REENCODED_FROM])
    assert {"", "png", "webp"} <= kinds


HF = r"""
import contextlib, io, json, os, re, sys
from datasets import load_dataset
for place, card in json.loads(sys.argv[1]):
    for streaming in (True, False):
        ways = {"folder": (place + "/images",)}
        if not card:
            ways["webdataset"] = ("webdataset",)
        for way, args in ways.items():
            more = {"data_files": place + "/images/*.tar"} if way == "webdataset" else {}
            uids = []
            for sample in load_dataset(*args, split="train", streaming=streaming, **more):
                (image,) = [v for k, v in sample.items() if hasattr(v, "size")]
                row = sample["json"]
                assert image.size == (row["WIDTH"], row["HEIGHT"]) and sample["txt"] == row["TEXT"]
                assert None not in row.values() and len(row) > 20
                uids.append(sample["__key__"])
            print(json.dumps([place, way, uids]))
    os.chdir(place)
    shown = open("README.md").read()
    table, code = re.findall(r"```python\n(from datasets.*?)```", shown, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(table)
    assert "uid" in out.getvalue() and "num_rows" in out.getvalue()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code)
    keys = [line.split()[0] for line in out.getvalue().splitlines()]
    print(json.dumps([place, "as shown", keys]))
    with contextlib.redirect_stdout(io.StringIO()):
        exec(sys.argv[2].replace("./my-dataset", place).replace("my-dataset", place))
    print(json.dumps([place, "metadata", list(table["uid"])]))
"""


@needs("datasets")
def test_hugging_face_datasets_loads_both_forms_streaming_and_not(made, tmp_path):
    """By the folder and by its card; of one extension, as WebDataset without a card as well."""
    places = [(str(made[form]), form == "plain") for form in FORMS]
    home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path)}
    home |= {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0"}  # which take seconds to import
    (guide,) = re.findall(r"```python\n(from datasets.*?)```", read_page("reading"), re.DOTALL)
    command = [sys.executable, "-c", HF, json.dumps(places), guide]
    ran = subprocess.run(command, env=home, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    ways = [(place == str(made["jpg"]), way) for place, way, _ in found]
    assert sorted(ways) == sorted(
        [(False, "folder")] * 2 + [(True, "folder"), (True, "webdataset")] * 2
        + [(one, way) for one in (False, True) for way in ("metadata", "as shown")]
    )  # fmt: skip
    for _, _, uids in found:
        assert sorted(uids) == sorted(kept())


@both
@pytest.mark.filterwarnings("ignore")  # of torch, about forks and more workers than cores
def test_webdataset_reads_every_pair_with_four_workers_and_a_brace_list(made, form):
    webdataset = pytest.importorskip("webdataset")
    for shards in (listed(made[form]), f"{made[form]}/images/{{00000..00002}}.tar"):
        pairs = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        loader = webdataset.WebLoader(pairs, batch_size=None, num_workers=4)
        found = [sample["__key__"] for sample in loader]
        assert sorted(found) == sorted(kept())


@needs("open_clip_train")
@pytest.mark.filterwarnings("ignore")
def test_open_clip_trains_on_every_pair_of_one_extension(made, monkeypatch):
    """Its own loader, which takes the number of pairs from sizes.json."""
    from open_clip_train import data
    from open_clip_train.params import parse_args
    from webdataset.tariterators import tar_file_expander

    # It was made for webdataset 0.2.86, which puts no marks between the tars.
    monkeypatch.setattr(data, "tar_file_expander", partial(tar_file_expander, eof_value=None))
    monkeypatch.chdir(made["jpg"])
    (shown,) = re.findall(r"```bash\n[^`]*(python -m open_clip.*?)```", card(), flags=re.DOTALL)
    print_words = shown.replace("python -m open_clip_train.main", "printf '%s\\n'")
    ran = subprocess.run(["bash", "-c", print_words], capture_output=True, text=True, check=True)
    args = parse_args([*ran.stdout.splitlines(), "--batch-size", "5", "--workers", "1"])
    args.world_size = 1
    loaded = data.get_wds_dataset(
        args, lambda image: image.resize((8, 8)).tobytes(), True, tokenizer=lambda text: [text]
    )
    assert loaded.dataloader.num_samples == 45
    batches = list(loaded.dataloader)
    assert [len(images) for images, _ in batches] == [5] * 9
    texts = [pair.image.candidate.text for pair in kept().values()]
    assert sorted(text for _, batch in batches for text in batch) == sorted(texts)


@both
def test_tables_read_every_row(made, form):
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    table = polars.read_parquet(made[form] / "metadata")
    query = f"select uid, TEXT from '{made[form]}/metadata/*.parquet'"
    for found in (table.select("uid", "TEXT").rows(), duckdb.sql(query).fetchall()):
        texts = {uid: pair.image.candidate.text for uid, pair in kept().items()}
        assert len(found) == len(texts) and dict(found) == texts


def test_a_pair_can_be_taken_out_where_pictures_have_one_extension(tmp_path):
    world.write(tmp_path, spec=world.with_forms("images:jpg", "tfrecords"))
    gone = world.some(1)[0][0].image.candidate.uid
    (change,) = rewrite_shards(
        tmp_path, lambda row: DropReason.PURGED if row["uid"] == gone else None
    )
    assert change.left == 14 and list(verify(tmp_path)) == []
    table = pq.read_table(tmp_path / "metadata/metadata_s-0.parquet")
    assert {"", "png"} <= {*table[REENCODED_FROM].to_pylist()}


@both
def test_the_sizes_are_those_of_the_tars(made, form):
    folder = made[form]
    assert read_tar_sizes(folder) == {"00000.tar": 15, "00001.tar": 15, "00002.tar": 15}
    assert (folder / COUNT_FILE).read_text() == "3\n"

"""Judged images without a model: small pictures, and embeddings with just the wanted cosine."""

import hashlib
import random
import tempfile
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image as Picture

from cahlib.core.records import (
    DROP_REASONS,
    Candidate,
    DropReason,
    Image,
    Judged,
    OptOut,
    Outcome,
    Parcel,
    Shard,
    Stage,
    Stats,
)
from cahlib.crawl.shards import list_shards
from cahlib.dataset.layout import vectors_path
from cahlib.dataset.maintain.add_scores import add_scores
from cahlib.dataset.manifest import (
    AddedScores,
    encode_manifest,
    manifest_path,
    read_manifest,
    read_manifests,
)
from cahlib.dataset.storage.hashed_file import FileRecord
from cahlib.dataset.write.shard_writer import DatasetSpec, ScoredParcel, read_uids, write_shard
from cahlib.image.header import CAN_DECODE_AVIF
from cahlib.ledger.local import LocalLedger
from cahlib.model.model_source import find_source
from cahlib.model.score_names import column_name, score_columns

SPEC = DatasetSpec(
    model="ViT-tiny/none",
    threshold=0.3,
    scores=score_columns("ViT-tiny/none", ("similarity", "age minor"), layout=2),
    forms=("images", "embeddings", "tfrecords"),
    versions={"open_clip": "3.0"},
)
ROOT = Path(__file__).parent.parent.parent
_FORMATS = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    **({"avif": "AVIF"} if CAN_DECODE_AVIF else {}),
}


def judged(number, *, similarity=None, reason=None, nsfw="UNLIKELY", format=None, **texts):
    """One judged image; the same number gives the same image."""
    chance = random.Random(number)
    text = texts.get("text", f"Ein Bild – picture {number} & <b>more</b>")
    url = texts.get("url", f"https://host{number % 7}.example/{number}.jpg?a=1&b=2")
    if similarity is None:
        similarity = chance.uniform(0.1, 0.29) if reason else chance.uniform(0.3, 0.6)
    format = format or chance.choice(list(_FORMATS))
    width, height = chance.randint(70, 260), chance.randint(70, 260)
    data = _drawn(chance.getrandbits(64), width, height, format)
    candidate = Candidate(
        uid=hashlib.md5((url + text).encode()).hexdigest(),
        position=number,
        url=url,
        text=text,
        raw_text=texts.get("raw_text"),
        page=texts.get("page", f"https://host{number % 7}.example/"),
        licence="?",
        language="en",
        reliable=True,
        source="alt",
    )
    image = Image(
        candidate=candidate,
        data=data,
        format=format,
        width=width,
        height=height,
        original_width=width,
        original_height=height,
        md5=hashlib.md5(data).hexdigest(),
        sha1=hashlib.sha1(data).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        robots=texts.get("robots", ""),
    )
    scores = {"similarity": similarity}
    if nsfw != "UNLIKELY":
        scores["age minor"] = 0.25
    of_image, of_text = embeddings(number, similarity)
    return Judged(
        image=image,
        similarity=similarity,
        nsfw=nsfw,
        scores=scores,
        image_embedding=of_image,
        text_embedding=of_text,
        reason=reason,
    )


@cache
def _drawn(seed, width, height, format):
    """A picture of a few coloured boxes, as a file; to encode one takes up to 40 ms."""
    chance = random.Random(seed)
    picture = Picture.new("RGB", (width, height), (chance.randrange(256), 90, 160))
    for _ in range(6):
        x, y = chance.randrange(width), chance.randrange(height)
        colour = tuple(chance.randrange(256) for _ in range(3))
        picture.paste(colour, (x, y, x + chance.randint(5, 90), y + chance.randint(5, 90)))
    out, quicker = BytesIO(), {"speed": 10} if format == "avif" else {}
    picture.save(out, _FORMATS[format], **quicker)
    return out.getvalue()


def embeddings(number, similarity, width=32):
    """Two float16 vectors of length 1 with this cosine."""
    a, b = np.random.default_rng(number).normal(size=(2, width))
    a /= np.linalg.norm(a)
    b -= (a @ b) * a
    b /= np.linalg.norm(b)
    return a.astype("float16"), (similarity * a + (1 - similarity**2) ** 0.5 * b).astype("float16")


def some(count, *, first=0):
    """Judged images of every kind, and the stats of their judging."""
    made = []
    for number in range(first, first + count):
        kind = number % 5
        reason = {1: DropReason.DISSIMILAR, 2: DropReason.DISSIMILAR, 3: DropReason.MINOR}.get(kind)
        if number % 10 == 3:
            reason = None
        nsfw = "UNSURE" if kind == 3 else "UNLIKELY"
        made.append(judged(number, reason=reason, nsfw=nsfw))
    return made, stats_of(made)


def stats_of(made):
    """The stats that the judging of these images leaves."""
    stats = Stats()
    stats.entered[Stage.JUDGE] = len(made)
    stats.left[Stage.JUDGE] = sum(each.reason is None for each in made)
    stats.dropped.update(each.reason for each in made if each.reason)
    return stats


def parcel(shard="CC-MAIN-2024-10-00007-0", *, images, refused=1, began=1_700_000_000.0):
    """The account of a scraping that brought so many images; there is no file behind it."""
    stats = Stats()
    stats.entered.update({Stage.READ: 300, Stage.CHOOSE: 9000, Stage.FETCH: 3 * images + refused})
    stats.left.update({Stage.READ: 250, Stage.CHOOSE: 3 * images + refused, Stage.FETCH: images})
    stats.dropped.update(
        {
            DropReason.NOT_A_PAGE: 50,
            DropReason.NO_TEXT: 9000 - 3 * images - refused,
            DropReason.HTTP_4XX: images,
            DropReason.TIMEOUT: images,
            DropReason.OPTED_OUT: refused,
        }
    )
    evidence = OptOut(
        url="https://shy.example/a.jpg",
        where="https://shy.example/a.jpg",
        signal="x-robots-tag",
        value="noai\udce9",
        time=began,
    )
    return Parcel(
        shard=Shard(id=shard, url="https://crawl.example/a.warc.wat.gz", half=0),
        path=Path("/nowhere/a.tar"),
        sha256="0" * 64,
        size=0,
        images=images,
        stats=stats,
        optouts=(evidence,) * refused,
        started=began,
        finished=began + 600,
        versions={"cahlib": "0.1.0"},
    )


def candidate_of(candidate):
    """The candidate with the key of its URL and text."""
    digest = hashlib.md5((candidate.url + candidate.text).encode()).hexdigest()
    return replace(candidate, uid=digest)


def placed(made):
    """These images as the first candidates of their shard."""
    numbered = []
    for position, each in enumerate(made):
        candidate = replace(each.image.candidate, position=position)
        numbered.append(replace(each, image=replace(each.image, candidate=candidate)))
    return numbered


def outcomes(scraped, made):
    """The outcomes of a parcel's candidates: first these images, then what was dropped."""
    for each in made:
        candidate = each.image.candidate
        yield Outcome(candidate.position, None, candidate, 200, None, 40, len(each.image.data), 1)
    position, names = len(made), iter(range(1_000_000))
    for reason in DROP_REASONS[Stage.FETCH].values():
        for _ in range(scraped.stats.dropped[reason]):
            url = f"https://{reason.value.replace('_', '-')}.example/{next(names)}.jpg"
            candidate = replace(judged(0, url=url).image.candidate, position=position)
            status = {DropReason.HTTP_4XX: 404}.get(reason)
            yield Outcome(position, reason, candidate, status, None, 30, None, 1)
            position += 1


def with_forms(*forms):
    """The spec with other forms."""
    return replace(SPEC, forms=forms)


#: The files of each shard that `write` has made.
_WRITTEN = {}


def write(folder, count=30, *, first=0, shard="s-0", spec=SPEC):
    """A shard of such images, put into the dataset of a folder: a copy of one written before."""
    folder = Path(folder)
    if (folder / manifest_path(shard)).exists():
        return write_anew(folder, count, first=first, shard=shard, spec=spec)
    wanted = count, first, shard, repr(spec)
    if wanted not in _WRITTEN:  # which takes 40 ms, and to copy it 1
        with tempfile.TemporaryDirectory() as place:
            write_anew(Path(place), count, first=first, shard=shard, spec=spec)
            made = [path for path in Path(place).rglob("*") if path.is_file()]
            _WRITTEN[wanted] = {path.relative_to(place): path.read_bytes() for path in made}
    for path, data in _WRITTEN[wanted].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return read_manifest(folder, shard)


def write_anew(folder, count=30, *, first=0, shard="s-0", seen=lambda uid: False, spec=SPEC):
    """The same, written by the code under test."""
    return write_these(folder, some(count, first=first)[0], shard=shard, seen=seen, spec=spec)


def write_these(folder, made, *, shard="s-0", seen=lambda uid: False, spec=SPEC):
    """The same of certain images."""
    made, scraped = placed(made), parcel(shard, images=len(made))
    return write_shard(
        folder,
        made,
        ScoredParcel(parcel=scraped, stats=stats_of(made), outcomes=outcomes(scraped, made)),
        spec=spec,
        again=lambda each: DropReason.PAIR_SEEN if seen(each.image.candidate.uid) else None,
    )


def left(folder):
    """The numbers of the pairs that a dataset has, sorted."""
    urls = pq.read_table(folder / "metadata", columns=["URL"])["URL"].to_pylist()
    return sorted(int(url.split("/")[-1].split(".")[0]) for url in urls)


def replace_matrix(folder, shard, path, matrix):
    """Change a shard's vectors and renew its manifest, so that their checksum is right."""
    np.save(folder / path, matrix.astype("<f2"))
    data, manifest = (folder / path).read_bytes(), read_manifest(folder, shard)
    stored = FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    renewed = replace(manifest, files={**manifest.files, path: stored})
    (folder / manifest_path(shard)).write_bytes(encode_manifest(renewed))


def add_vectors(folder, model, of):
    """Add vectors by a further model, as `cah score --embeddings` does: ``of`` has one per row."""
    first = 0
    for manifest in [*read_manifests(folder)]:
        own = np.asarray(of[first : first + manifest.rows], "f2")
        first += manifest.rows
        named = {
            vectors_path(form, manifest.shard.id, column_name(model)): own
            for form in ("img_emb", "text_emb")
        }
        add_scores(folder, manifest, [AddedScores(model=model, columns=(), digest="")], {}, named)


def finish(job):
    """The dataset of a job as its run leaves it, with the job and the ledger beside it."""
    folder = job.output.folder
    spec = replace(
        SPEC,
        model=find_source(job.judge).name,
        threshold=job.judge.chosen()[2],
        forms=job.output.forms,
    )
    job.store(folder / "run" / "job.json")
    ledger = LocalLedger(folder / "run" / "ledger.sqlite")
    for number, shard in enumerate(list_shards(job.crawl, contact=job.download.contact)):
        manifest = write(folder, first=1000 * number, shard=shard.id, spec=spec)
        ledger.add([shard])
        ledger.commit(shard, read_uids(folder, manifest), manifest.stats)
        ledger.mark_done(shard)
    ledger.close()

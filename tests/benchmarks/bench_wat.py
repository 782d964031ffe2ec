"""A WAT file to candidates on one core, against cc2dataset's extraction of the same file.

    python -m tests.benchmarks.bench_wat [--rounds 5] [--no-peer] [--small]

The WAT is made from a seed in Common Crawl's layout: 8,000 pages with a request, a response and a
metadata record each, 100 MB inflated, 50,861 images with an alt text. 45 % of the texts are
English, the rest is of six languages, file names and the words that every page has. The peer
neither detects languages nor repairs texts; ours does all its work, and does it again with caption
rules (`rules`): two lists of 100,000 words and phrases, and a pattern. `links` is ours
with no more than the peer's work: the absolute URL of each image that has a text. `floor` is what
the libraries alone take for the same pages: to inflate, to parse, and to detect the language of
each text for which ours does so. All run in processes of their own, bound to one core; the table
shows the median CPU seconds and the highest memory.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pycld2
from isal import isal_zlib

from cahlib.core.config import Crawl
from cahlib.core.records import Stats
from cahlib.crawl import texts
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.caption_rules import CaptionRules
from cahlib.crawl.shards import list_shards
from cahlib.crawl.wat import _Record, read_pages
from cahlib.fetch import links
from tests.benchmarks.common import (
    Found,
    apart,
    beside,
    kept,
    measured,
    note,
    one_core,
    parser,
    rss,
    venv,
)

PAGES, TEXTS = 8000, 50_861

#: What the peer's process runs. What it reads WATs with does not need Spark, 400 MB, but its file
#: imports it.
SCRIPT = """
import json, os, resource, sys, time
from unittest.mock import MagicMock
for name in ("pyspark", "pyspark.sql", "pyspark.sql.functions", "pandas"):
    sys.modules[name] = MagicMock()
from cc2dataset.main import process_wat
from loguru import logger
logger.remove()
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
before = time.process_time()
count = sum(1 for _ in process_wat(sys.argv[1], "image"))
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps({"candidates": count, "cpu": time.process_time() - before, "rss": memory}))
"""

VOCABULARIES = {
    "en": "a the of in on with and for red blue old new small large wooden bright cold summer "
    "winter garden house kitchen river mountain dog cat woman man child players team city street "
    "bridge window table chair cup coffee bread cake flower tree forest beach sea boat train car "
    "bicycle road market shop dress shoes jacket watch ring camera phone book map poster painting "
    "portrait view sunset morning night light photo playing standing walking holding sitting "
    "looking made from by near under over between first last best free set pack design style "
    "modern vintage classic handmade leather cotton steel glass stone water snow rain green white "
    "black brown yellow golden silver little great young happy quiet busy empty open front back",
    "de": "der die das ein eine und mit auf im vor dem alten neuen kleine große Haus Garten Stadt "
    "Straße Frau Mann Kinder Hund Katze Küche Tisch Stuhl Brücke Fluss Berge Wald Blick Sonne "
    "Winter Sommer steht sitzt läuft schöne grüne weiße für über unter zwischen",
    "fr": "le la les un une des et avec sur dans devant petite grande vieux nouveau maison jardin "
    "ville rue femme homme enfants chien chat cuisine table chaise pont rivière montagne forêt "
    "été hiver soleil près pour belle verte rouge château église été déjà",
    "es": "el la los un una y con en sobre para pequeña grande viejo nuevo casa jardín ciudad "
    "calle mujer hombre niños perro gato cocina mesa silla puente río montaña bosque verano "
    "invierno sol cerca hermosa verde roja castillo iglesia año",
    "ru": "и в на с под над около старый новый маленький большой дом сад город улица женщина "
    "мужчина дети собака кошка кухня стол стул мост река гора лес лето зима солнце красивый "
    "зелёный красный белый чёрный стоит сидит",
    "ja": "桜の花が 公園で 子供たちが 遊んでいる 古い家の 庭に 赤い自転車が ある 海の 見える "
    "窓から 朝の光が 入る 山の上の 小さな神社 美味しい 料理の 写真です 新しい 駅前の 通り",
    "zh": "红色的 小房子 在河边 老城区 的街道 一只猫 坐在 窗台上 孩子们 在公园 里玩耍 "
    "冬天的 雪山 美丽的 日落 海边 新鲜的 水果 市场 木桌上 的咖啡",
}
LANGUAGES = random.Random(0).choices(list(VOCABULARIES), [50, 8, 8, 8, 10, 8, 8], k=997)
COMMON = (
    "logo Logo Home Search Facebook Twitter Instagram Menu image Image icon avatar thumbnail "
    "placeholder banner"
).split() + ["Close menu", "Share on Facebook", "Site logo", "Previous slide", "User avatar"]


def text(rng: random.Random) -> str:
    """An alt text of the kinds that pages have."""
    kind = rng.random()
    if kind < 0.16:
        return rng.choice(COMMON)
    if kind < 0.22:
        return f"{rng.choice(('IMG', 'DSC', 'banner', 'photo'))}_{rng.randrange(10**4)}.jpg"
    language = rng.choice(LANGUAGES)
    words = VOCABULARIES[language].split()
    made = " ".join(rng.choices(words, k=rng.randint(2, 14)))
    if language in ("ja", "zh") and rng.random() < 0.5:  # they point with signs of full width
        made = made.replace(" ", rng.choice("\uff0c\u3001\u3002"), 1) + rng.choice(
            ("", "\uff01", "\uff1f")
        )
    if kind < 0.27:
        made += rng.choice(
            (" \u2013 2024", " &amp; more", " it\u00e2\u0080\u0099s here", " \u00a9")
        )
    return made[:1].upper() + made[1:]


def page(rng: random.Random, number: int, texts: int) -> Iterator[bytes]:
    """The three members about a page."""
    host = f"www.site{rng.randrange(6000)}.{rng.choice(('com', 'org', 'de', 'ru', 'co.uk'))}"
    url = f"https://{host}/{rng.choice(VOCABULARIES['en'].split())}/{number}.html"
    shown: list[dict[str, str]] = []
    for n in range(texts + rng.randrange(11)):
        path = f"/wp-content/uploads/2024/{rng.randrange(1, 13):02}/{rng.getrandbits(40):x}.jpg"
        start = rng.choice(("", f"https://{host}", f"https://cdn.{host}", f"//img.{host}"))
        link = {"path": "IMG@/src", "url": start + path}
        shown.append(link | {"alt": text(rng)} if n < texts else link)
    for _ in range(rng.randrange(28, 70)):
        words = rng.choices(VOCABULARIES["en"].split(), k=rng.randint(2, 9))
        href = "/".join(("", *words[:2], f"{rng.getrandbits(32):x}"))
        link = {"path": "A@/href", "url": f"https://{host}{href}", "text": " ".join(words)}
        shown.append(link)
    rng.shuffle(shown)
    metas = [
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
        {"property": "og:image", "content": f"https://{host}/og/{number}.jpg"},
        {"property": "og:description", "content": text(rng)},
        {"name": "description", "content": " ".join(text(rng) for _ in range(3))},
    ]
    head = {
        "Title": text(rng),
        "Metas": metas,
        "Link": [
            {"path": "LINK@/href", "url": f"/assets/{n}.css", "rel": "stylesheet"} for n in range(5)
        ],
        "Scripts": [{"path": "SCRIPT@/src", "url": f"/assets/{n}.js"} for n in range(8)],
    }
    fields = {f"X-Header-{n}": f"{rng.getrandbits(128):032x}" for n in range(12)}
    request = {"Request-Message": {"Method": "GET", "Path": url}, "Headers": fields}
    response = {
        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
        "Headers": fields | {"Set-Cookie": [f"{rng.getrandbits(256):x}" for _ in range(2)]},
        "HTML-Metadata": {"Head": head, "Links": shown},
    }
    notes = [{"Name": name, "Value": str(rng.randrange(999))} for name in ("fetchTimeMs", "lang")]
    yield record(rng, url, "request", {"HTTP-Request-Metadata": request})
    yield record(rng, url, "response", {"HTTP-Response-Metadata": response})
    yield record(rng, url, "metadata", {"WARC-Metadata-Metadata": {"Metadata-Records": notes}})


def record(rng: random.Random, url: str, kind: str, payload: dict[str, object]) -> bytes:
    """One inflated record."""
    name = f"<urn:uuid:{rng.getrandbits(128):032x}>"
    header = {"WARC-Type": kind, "WARC-Record-ID": name, "WARC-Target-URI": url}
    content = {
        "Container": {
            "Filename": "CC-MAIN-20240517233122-20240518023122-00000.warc.gz",
            "Compressed": True,
            "Offset": str(rng.randrange(10**9)),
            "Gzip-Metadata": {"Deflate-Length": "423", "Inflated-CRC": "1106529533"},
        },
        "Envelope": {
            "Payload-Metadata": {
                "Actual-Content-Type": f"application/http; msgtype={kind}",
                **payload,
                "Block-Digest": "sha1:IE7NEN3QEJHUCYRRGVMHDDW3BEHFRQ6V",
            },
            "Format": "WARC/1.0",
            "WARC-Header-Metadata": header,
        },
    }
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    fields = {
        "WARC-Type": "metadata",
        "WARC-Target-URI": url,
        "WARC-Date": "2024-05-31T01:17:49Z",
        "WARC-Record-ID": name,
        "WARC-Refers-To": name,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "WARC-Block-Digest": "sha1:4RUZFQLEBLD46HZUN3VDGDW5FRMAHDDM",
    }
    lines = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + body + b"\r\n\r\n"


def make(path: Path, count: int, texts: int) -> None:
    """Write the WAT file."""
    rng, size, done = random.Random(2024), 0, 0
    with open(path, "wb") as file:
        for number in range(1, count + 1):
            most = min(40, texts - done)
            shown = round(rng.expovariate(1) * (texts - done) / (count - number + 1))
            shown = most if number == count else min(most, shown)
            done += shown
            for member in page(rng, number, shown):
                size += len(member)
                file.write(gzip.compress(member, 6, mtime=0))
    print(f"{count} pages, {done} texts, {size / 1e6:.1f} MB inflated", file=sys.stderr)


def ours(path: str, **rules: Any) -> Found:
    """Read the file; what that took, imports apart."""
    crawl, stats = Crawl(crawl=path, **rules), Stats()
    CaptionRules.load(crawl)
    with one_core():
        before = time.process_time()
        every = (
            candidate
            for shard in list_shards(crawl)
            for candidate in find_candidates(read_pages(shard, stats), crawl, Blocklists(), stats)
        )
        count = sum(1 for _ in every)
        spent = time.process_time() - before
    return {"candidates": count, "cpu": spent, "rss": rss()}


def with_rules(path: str) -> Found:
    """The same with caption rules: two lists of 100,000 words and phrases, and a pattern."""
    rng, words = random.Random(7), VOCABULARIES["en"].split()
    names = ["".join(rng.choices("aeioubcdfglmnprst", k=rng.randint(4, 9))) for _ in range(50_000)]
    with tempfile.TemporaryDirectory() as folder:
        lists = Path(folder) / "wanted", Path(folder) / "unwanted"
        for file in lists:
            some = (rng.choices(rng.choice((names, words)), k=rng.randint(1, 2)) for _ in names)
            phrases = [" ".join([*each, rng.choice(names)]) for each in some] + names
            file.write_text("\n".join(phrases + words * (file == lists[0])))
        return ours(
            path, caption_words=(str(lists[0]),), caption_not=(str(lists[1]),),
            caption_regex=r"(?i)\w{3}",
        )  # fmt: skip


def links_alone(path: str) -> Found:
    """Read the file as `ours` does, but for no more than what the peer gives."""
    crawl, stats = Crawl(crawl=path), Stats()
    with one_core():
        before = time.process_time()
        every = (
            links.absolute_url(link.url, base, crawl.max_url)
            for shard in list_shards(crawl)
            for page in read_pages(shard, stats)
            for base in (links.BaseUrl.of(page.url, page.base),)
            for link in page.links
            if link.path == "IMG@/src" and link.alt
        )
        count = sum(1 for _ in every)
        return {"candidates": count, "cpu": time.process_time() - before, "rss": rss()}


def floor(path: str) -> Found:
    """Do what no reader with languages goes below: the work of its three libraries alone."""
    data, said = Path(path).read_bytes(), list[str]()
    with patch.object(texts, "detect_language", lambda text: (said.append(text), True)):
        ours(path)
    begins = [match.start() for match in re.finditer(rb"\x1f\x8b\x08\0", data)]
    packed = [data[slice(*both)] for both in zip(begins, [*begins[1:], len(data)], strict=True)]
    records = [isal_zlib.decompress(each, 31) for each in packed]
    bodies = [each.partition(b"\r\n\r\n")[2] for each in records if b"IMG@" in each]
    decode = msgspec.json.Decoder(_Record).decode
    with one_core():
        before = time.process_time()
        for each in packed:
            isal_zlib.decompress(each, 31)
        for each in bodies:
            decode(each)
        for text in said:
            pycld2.detect(text, True)
        return {"candidates": len(said), "cpu": time.process_time() - before, "rss": rss()}


def peer(home: Path) -> Path:
    """A Python with the peer in it."""
    packages = ("cc2dataset==1.5.0", "fastwarc", "pysimdjson", "fsspec", "loguru")
    return venv(home / "cc2dataset", "--no-deps", *packages)


def main(arguments: Sequence[str]) -> None:
    made = parser(
        __doc__, arguments, peer=True, pages=(PAGES, 40), texts=(TEXTS, 250), rounds=(5, 1)
    )
    options = made.parse_args(arguments)
    path = kept(
        options.inputs / f"bench-{options.pages}-{options.texts}.warc.wat.gz",
        partial(make, count=options.pages, texts=options.texts),
    )
    taken: dict[str, list[Found]] = {}
    for _ in range(options.rounds):
        taken.setdefault("ours", []).append(apart(ours, path, small=options.small))
        for name, side in {"links": links_alone, "floor": floor, "rules": with_rules}.items():
            taken.setdefault(name, []).append(apart(side, path, small=options.small))
        if options.peer:
            line = [peer(options.inputs), "-c", SCRIPT, path]
            taken.setdefault("peer", []).append(measured(line))
    figures: dict[str, Found] = {}
    print(f"{'':6}{'CPU s':>8}{'least':>8}{'MiB':>8}{'candidates':>12}")
    for side, rounds in taken.items():
        seconds = [each["cpu"] for each in rounds]
        (found,) = {each["candidates"] for each in rounds}
        # of the texts, less than half are English and make candidates
        assert options.texts / 5 < found <= options.texts * 1.5, found
        memory = max(each["rss"] for each in rounds)
        print(f"{side:6}{statistics.median(seconds):8.2f}{min(seconds):8.2f}{memory:8}{found:12}")
        figures[side] = {"cpu": statistics.median(seconds), "mib": memory}
    alone = {name: figures[name]["cpu"] for name in ("links", "floor")}
    note("wat", **alone, **beside(figures["ours"], figures.get("peer")))


if __name__ == "__main__":
    main(sys.argv[1:])

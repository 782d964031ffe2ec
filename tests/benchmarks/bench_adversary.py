"""A scraper against a hostile web: attacks tried and survived, and bytes wasted on who refuses us.

    python -m tests.benchmarks.bench_adversary [--json]

As root: it makes itself a network namespace in which public and private addresses are its own, with
a name server, certificates, and the attacks of `tests.world.adversary`; then the scraper is run as
in every run, on one shard that holds them all. An attack is survived if each of its links ends for
its reason, or is kept, and nothing on an address that is not public was connected to.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trustme

from cahlib.core.config import Crawl, Download
from cahlib.core.records import DropReason, Parcel, Shard, Stage, Stats
from cahlib.crawl.shards import list_shards
from cahlib.fetch.addresses import is_public
from cahlib.parcel.parcel import find_parcel, read_images
from cahlib.run.scrape import scrape
from tests.benchmarks.common import Absent, Found, apart, line, measured, parser
from tests.world import adversary
from tests.world import web as w
from tests.world.adversary import ASLEEP, EXPIRED, HERE, STRANGER, Attack
from tests.world.names import name_server

GOOD = 100  #: pictures among the attacks
_OURS = (HERE, ASLEEP, STRANGER, EXPIRED)
_INSIDE = ("10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1")
OPTIONS = Download(
    contact="tests@example.org",
    connect_timeout=1,
    read_timeout=1,
    total_timeout=3,
    max_bytes=adversary.MOST_BYTES,
    per_second=200,
    per_domain=20,
)


def run() -> Found:
    """The figures, from a namespace of its own."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        raise Absent("a network namespace needs root and iproute2.")
    namespace = ["unshare", "--net", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        raise Absent("this machine allows no network namespaces.")
    return measured([*namespace, *line(inside)])


def inside() -> Found:
    """What became of the attacks, in the namespace that this process is in."""
    every = adversary.attacks()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        good = [f"http://good{n % 20}.attack/good.jpg?{n}" for n in range(GOOD)]
        (folder / "adversary.warc.wat.gz").write_bytes(adversary.crawl(every, good))
        with _network(folder, every) as webs:
            ran = apart(scraped, work)
        parcels = [found for each in _shards(folder) if (found := find_parcel(folder, each))]
        told = _told(parcels, every, webs)
    return told | {"seconds": round(ran["wall"], 1), "memory": ran["memory"]}


def _shards(folder: Path) -> list[Shard]:
    return list(list_shards(Crawl(crawl=str(folder / "adversary.warc.wat.gz"))))


def scraped(work: str) -> Found:
    """What a scraper does, in a process of its own: the most MiB of memory that it took."""
    folder, crawl = Path(work), Crawl(max_url=100_000)
    for shard in _shards(folder):
        scrape(shard, crawl, OPTIONS, folder, limit=120, report=lambda _: None)
    # not by getrusage: its figure begins with that of the process that started this one
    status = Path("/proc/self/status").read_text()
    return {"memory": int(status.partition("VmHWM:")[2].split()[0]) >> 10}


def _told(parcels: Sequence[Parcel], every: Sequence[Attack], webs: Sequence[w.Web]) -> Found:
    """What became of each attack."""
    stats = sum((parcel.stats for parcel in parcels), Stats())
    stored = [image for parcel in parcels for image in read_images(parcel)]
    kept = Counter(image.candidate.url for image in stored)
    wrong = [attack.name for attack in every if not _as_expected(attack, kept)]
    expected = Counter(each.reason for each in adversary.rotten() if each.reason)
    for attack in every:
        if attack.reason:
            expected[attack.reason] += attack.links - attack.left
    lost = Counter(stats.dropped)
    lost[DropReason.NO_ROBOTS] += lost.pop(DropReason.LEFT_ALONE)  # after so many of them
    differences = {
        reason.value: (lost[reason], expected[reason])
        for reason in DropReason
        if reason is not DropReason.NOT_A_PAGE and lost[reason] != expected[reason]
    }
    sent = sum((web.sent for web in webs), Counter[str]())
    refusing = [attack for attack in every if attack.refuses]
    beforehand = [attack for attack in refusing if attack.beside]
    return {
        "attacks": len(every) + len(adversary.rotten()),
        "wrong": wrong,
        "differences": differences,
        "unaccounted": [stats.unaccounted(stage) for stage in Stage][:3],
        "good": sum(number for url, number in kept.items() if "/good.jpg" in url),
        "inside": sum(n for web in webs for at, n in web.reached.items() if not is_public(at)),
        "markup": sum(b"<script>" in image.data for image in stored),
        "passwords": sum("authorization" in headers for web in webs for _, headers in web.asked),
        "cookies": sum("cookie" in headers for web in webs for _, headers in web.asked),
        "refusing": len(refusing),
        "refused links": sum(attack.links for attack in refusing),
        "wasted": sum(sent[attack.host] for attack in refusing),
        "wasted where asked first": sum(sent[attack.host] for attack in beforehand),
        "lost": {reason.value: number for reason, number in stats.dropped.items() if number},
    }


def _as_expected(attack: Attack, kept: Counter[str]) -> bool:
    found = sum(kept[url.partition("#")[0]] + kept[url] * ("#" in url) for url in attack.urls)
    return found == (attack.left if attack.reason or attack.left else attack.links)


@contextmanager
def _network(folder: Path, every: Sequence[Attack]) -> Iterator[list[w.Web]]:
    """Addresses, names, certificates and servers of the namespace that this process is in."""
    _addresses(folder)
    names = {attack.host: attack.addresses for attack in every if attack.addresses}
    names["creds.attack"] = adversary.of(HERE)
    names |= {f"good{n}.attack": adversary.of(HERE) for n in range(20)}
    paths: dict[str, w.Behaviour] = {"/good.jpg": w.body(adversary.JPEG)}
    paths["creds.attack/it.jpg"] = w.body(adversary.JPEG)
    for attack in every:
        mine = {attack.path: attack.serves} if attack.serves else {}
        for path, behaviour in (mine | attack.beside).items():
            paths[attack.host + path] = behaviour
    with ExitStack() as stack:
        stack.enter_context(name_server(names, ("127.0.0.1", 53)))
        stack.enter_context(socket.create_server((ASLEEP, 443)))  # which accepts nobody
        places = {("0.0.0.0", 80): None, **_certificates(folder)}
        yield [
            stack.enter_context(w.Web(paths, tls=tls, place=place)) for place, tls in places.items()
        ]


def _addresses(folder: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (*_OURS, *_INSIDE):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", folder / "resolv.conf", "/etc/resolv.conf"], check=True)


def _certificates(folder: Path) -> dict[tuple[str, int], ssl.SSLContext]:
    """A server of the authority that is trusted, of one that is not, and one whose time is over."""
    trusted, stranger = trustme.CA(), trustme.CA()
    trusted.cert_pem.write_to_path(folder / "trusted.pem")
    os.environ["SSL_CERT_FILE"] = str(folder / "trusted.pem")
    over = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    issued = {
        (HERE, 443): trusted.issue_cert("good-tls.attack"),
        (STRANGER, 443): stranger.issue_cert("a-certificate-of-nobody.attack"),
        (EXPIRED, 443): trusted.issue_cert("an-old-certificate.attack", not_after=over),
    }
    found = {}
    for place, certificate in issued.items():
        found[place] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(found[place])
    return found


def show(found: Found) -> None:
    """Print the figures."""
    survived = found["attacks"] - len(found["wrong"])
    print(
        f"attacks tried {found['attacks']}, survived {survived}; "
        f"good pictures {found['good']} of {GOOD}; {found['seconds']} s, {found['memory']} MiB\n"
        f"connections to addresses that are not public: {found['inside']}\n"
        f"{found['refusing']} hosts refuse {found['refused links']} links: "
        f"{found['wasted']:,} bytes came all the same, {found['wasted where asked first']:,} of "
        "them from those that refuse by files of their host"
    )


def main(arguments: Sequence[str]) -> None:
    made = parser(__doc__, arguments)  # no attack is left out, however small it shall be
    made.add_argument("--json", action="store_true")
    chosen = made.parse_args(arguments)
    found = run()
    if chosen.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main(sys.argv[1:])

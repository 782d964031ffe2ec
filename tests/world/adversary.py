"""The attacks of a hostile web, a table: how each is made, and what must become of it.

Each attack has a registered domain of its own, so that none is spared for another's sake. They are
mounted by `tests.benchmarks.bench_adversary`.
"""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import json
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image as Pillow

from cahlib.core.records import DropReason
from cahlib.demo import wat
from tests.world import bombs
from tests.world import web as w
from tests.world.names import Addresses
from tests.world.pictures import picture

HERE = "93.184.216.34"  #: a public address, which a namespace has for its own
ASLEEP, STRANGER, EXPIRED = "93.184.216.35", "93.184.216.36", "93.184.216.37"
CAPTION = "A photo of the old harbour with boats in the evening sun"
MOST_BYTES = 2_000_000
LINKS = 100_000  #: to one host
JPEG = picture()
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to lie, to stall, or to harm."""

    name: str
    reason: DropReason | None = None  #: why its links are lost; None: they are kept
    path: str = "/it.jpg"
    serves: w.Behaviour | None = None
    beside: dict[str, w.Behaviour] = field(default_factory=dict)  #: other paths of its host
    url: str = ""  #: its link, if that is not its path on its host
    alt: str = CAPTION
    addresses: Addresses | Iterator[Addresses] = ((socket.AF_INET, HERE),)
    links: int = 1
    left: int = 0  #: of its links, how many are kept all the same
    refuses: bool = False  #: its owner does not want us

    @property
    def host(self) -> str:
        return self.name.replace(" ", "-").lower() + ".attack"

    @property
    def urls(self) -> Iterator[str]:
        first = self.url or f"http://{self.host}{self.path}"
        yield first
        yield from (f"{first}?{number}" for number in range(1, self.links))


def of(address: str) -> tuple[tuple[int, str], ...]:
    return ((socket.AF_INET6 if ":" in address else socket.AF_INET, address),)


def _names() -> Iterator[Attack]:
    """Host names that mean places inside."""
    inside = {
        "name of loopback": "127.0.0.1",
        "name of this": "0.0.0.0",
        "name of a private net": "10.0.0.1",
        "name of another private net": "192.168.1.1",
        "name of the cloud": "169.254.169.254",
        "name of CGNAT": "100.64.0.1",
        "name of multicast": "224.0.0.1",
        "name of loopback 6": "::1",
        "name of a mapped address": "::ffff:127.0.0.1",
        "name of link local 6": "fe80::1",
        "name of a unique local": "fd00::1",
        "name of NAT64": "64:ff9b::7f00:1",
        "name of 6to4": "2002:7f00:1::1",
    }
    for name, address in inside.items():
        yield Attack(name=name, addresses=of(address), reason=DropReason.PRIVATE_ADDRESS)
    yield Attack(name="name that does not exist", addresses=(), reason=DropReason.DNS)
    rebinding = itertools.chain([of(HERE)], itertools.repeat(of("127.0.0.1")))
    yield Attack(name="rebinding", addresses=rebinding, serves=w.body(JPEG), links=3, left=3)
    mixed = (*of("127.0.0.1"), *of(HERE), *of("10.0.0.1"))
    yield Attack(name="name of both", addresses=mixed, serves=w.body(JPEG))


def _addresses() -> Iterator[Attack]:
    """Addresses as no honest page writes them."""
    inside = (
        "localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "[::1]",
        "[::ffff:127.0.0.1]", "[fe80::1]", "169.254.169.254", "printer",
    )  # fmt: skip
    for host in inside:
        yield Attack(
            name=f"address {host}", url=f"http://{host}/it.jpg", reason=DropReason.PRIVATE_HOST
        )
    yield Attack(name="user and password", url="http://me:pw@creds.attack/it.jpg",
                 reason=DropReason.BAD_URL)  # fmt: skip
    yield Attack(name="a fragment", url="http://creds.attack/it.jpg#../../etc/passwd")
    # а and о are Cyrillic
    yield Attack(name="look alike", url="http://gооgle.attack/it.jpg", reason=DropReason.DNS)
    for port in (22, 25, 6379):
        yield Attack(name=f"port {port}", url=f"http://creds.attack:{port}/it.jpg",
                     reason=DropReason.BAD_URL)  # fmt: skip
    yield Attack(name="no port", url="http://creds.attack:99999/it.jpg", reason=DropReason.BAD_URL)
    yield Attack(name="a long address", url=f"http://creds.attack/{'a' * 200_000}.jpg",
                 reason=DropReason.LONG_URL)  # fmt: skip
    split = "http://creds.attack/it.jpg HTTP/1.1\r\nHost: inside.attack\r\n\r\n"
    yield Attack(name="two requests in one", url=split, reason=DropReason.HTTP_4XX)
    yield Attack(name="a script", url="javascript:fetch('//evil.attack')",
                 reason=DropReason.NOT_A_PICTURE_URL)  # fmt: skip
    yield Attack(name="a file", url="file:///etc/passwd.jpg", reason=DropReason.NOT_A_PICTURE_URL)


def _redirects() -> Iterator[Attack]:
    targets = {
        "to loopback": "http://127.0.0.1/it.jpg",
        "to a number": "http://2130706433/it.jpg",
        "to the cloud": "http://169.254.169.254/latest/meta-data/",
        "to a mapped address": "http://[::ffff:7f00:1]/it.jpg",
        "to a name inside": "http://name-of-loopback.attack/it.jpg",
        "to a file": "file:///etc/passwd",
        "to gopher": "gopher://to-gopher.attack/",
        "to data": "data:image/jpeg;base64,AAAA",
        "to itself": "/it.jpg",
        "to nonsense": "http://[::1",
    }
    for name, target in targets.items():
        yield Attack(name=name, serves=w.redirect(target), reason=DropReason.BAD_REDIRECT)
    hops = {f"/{n}": w.redirect(f"/{n + 1}") for n in range(50)}
    yield Attack(name="to and fro", serves=w.redirect("/0"), beside=hops,
                 reason=DropReason.BAD_REDIRECT)  # fmt: skip


def _servers() -> Iterator[Attack]:
    """Servers that stall, flood, and lie about what they send."""
    head = w.head(200, ("Content-Type", "image/jpeg"))
    bomb = bombs.gzipped(50)
    slow: dict[str, w.Behaviour] = {
        "silence": w.silent,
        "a dripping head": w.drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", pause=0.2),
        "a dripping body": w.drip(head + JPEG[:3000], b"x"),
        "a body that stalls": w.drip(head + JPEG, b"", pause=60),
    }
    for name, behaviour in slow.items():
        yield Attack(name=name, serves=behaviour, reason=DropReason.TIMEOUT)
    lies: dict[str, tuple[w.Behaviour, DropReason]] = {
        "an endless body": (w.endless(JPEG), DropReason.TOO_MANY_BYTES),
        "an endless head": (w.raw(head[:-2] + b"X: " + b"x" * 10**6), DropReason.BAD_HTTP),
        "a length too large": (w.broken_off(JPEG, length=10**15), DropReason.TOO_MANY_BYTES),
        "a length too long": (w.broken_off(JPEG, length=len(JPEG) + 9), DropReason.DISCONNECTED),
        "a length too short": (w.raw(w.head(200, ("Content-Length", 6000)) + JPEG),
                               DropReason.BAD_HTTP),
        "two lengths": (w.raw(head[:-2] + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
                        DropReason.BAD_HTTP),
        "a gzip bomb": (w.body(bomb, ("Content-Encoding", "gzip")), DropReason.TOO_MANY_BYTES),
        "a brotli bomb": (
            w.body(b"\xff" * 9000, ("Content-Encoding", "br")), DropReason.NOT_AN_IMAGE),
        "broken off": (w.broken_off(JPEG[:3000], length=len(JPEG)), DropReason.DISCONNECTED),
        "reset": (w.broken_off(JPEG[:3000], length=len(JPEG), reset=True), DropReason.DISCONNECTED),
        "no HTTP": (w.raw(b"SSH-2.0-OpenSSH_9.9\r\n"), DropReason.BAD_HTTP),
        "bytes": (w.raw(bytes(range(256)) * 100), DropReason.BAD_HTTP),
    }  # fmt: skip
    for name, (behaviour, reason) in lies.items():
        yield Attack(name=name, serves=behaviour, reason=reason)
    cookies = [("Set-Cookie", f"a{n}=b; Domain=example") for n in range(50)]
    yield Attack(name="cookies", serves=w.body(JPEG, *cookies))


def _tls() -> Iterator[Attack]:
    for name, address, reason in (
        ("a certificate of another", HERE, DropReason.TLS),
        ("a certificate of nobody", STRANGER, DropReason.TLS),
        ("an old certificate", EXPIRED, DropReason.TLS),
        ("a handshake that sleeps", ASLEEP, DropReason.NO_ROBOTS),
    ):
        host = name.replace(" ", "-") + ".attack"
        yield Attack(name=name, url=f"https://{host}/it.jpg", addresses=of(address), reason=reason)
    yield Attack(name="good tls", url="https://good-tls.attack/it.jpg", serves=w.body(JPEG))


def _owners() -> Iterator[Attack]:
    """Owners who refuse, in 20 ways for 20 images; and files that ask to be read for ever."""
    large = picture(size=(400, 300))
    many = {"links": 20, "refuses": True}
    refusals: dict[str, tuple[w.Behaviour, dict[str, w.Behaviour], DropReason]] = {
        "robots": (w.body(large), {"/robots.txt": w.body(b"User-agent: *\nDisallow: /\n")},
                   DropReason.OPTED_OUT),
        "robots for cahlib": (w.body(large),
                              {"/robots.txt": w.body(b"User-agent: cahlib\nDisallow: /\n")},
                              DropReason.OPTED_OUT),
        "no training": (w.body(large),
                        {"/robots.txt": w.body(b"User-agent: *\nContent-Usage: train-ai=n\n")},
                        DropReason.OPTED_OUT),
        "reserved": (w.body(large), {"/.well-known/tdmrep.json": w.body(
                     b'[{"location": "/*", "tdm-reservation": 1}]')}, DropReason.OPTED_OUT),
        "noai": (w.body(large, ("X-Robots-Tag", "noai")), {}, DropReason.OPTED_OUT),
        "tdm header": (w.body(large, ("TDM-Reservation", "1")), {}, DropReason.OPTED_OUT),
        "robots in trouble": (w.body(large), {"/robots.txt": w.body(b"", status=503)},
                              DropReason.NO_ROBOTS),
        "robots asleep": (w.body(large), {"/robots.txt": w.silent}, DropReason.NO_ROBOTS),
    }  # fmt: skip
    for name, (behaviour, beside, reason) in refusals.items():
        yield Attack(name=name, serves=behaviour, beside=beside, reason=reason, **many)
    endless = w.drip(w.head(200), b"User-agent: *\nAllow: /\n" * 3000, pause=0)
    rules = b"User-agent: *\n" + b"Disallow: /*a*a*a*a*b$\n" * 20_000
    packed = bombs.gzipped(200, b"#")
    for name, robots in (
        ("endless robots", endless),
        ("robots with wild rules", w.body(rules)),
        ("robots that swell", w.body(packed)),
        ("robots that loop", w.redirect("/robots.txt")),
    ):
        yield Attack(name=name, serves=w.body(JPEG), beside={"/robots.txt": robots})
    deep = w.body(b"[" * 400_000)
    yield Attack(name="deep tdmrep", serves=w.body(JPEG), beside={"/.well-known/tdmrep.json": deep})
    yield Attack(name="one host for all", serves=w.body(JPEG), links=LINKS, left=20,
                 reason=DropReason.TOO_MANY_LINKS)  # fmt: skip


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, data: bytes, *extra: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return _PNG + head + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _claimed(format: str) -> bytes:
    """A file of a small picture that says it is huge."""
    data = bytearray(picture(format))
    if format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    else:
        data[26:30] = struct.pack("<HH", 16_000, 16_000)
    return bytes(data)


def _moving(frames: int) -> bytes:
    """A WebP with so many frames, all the same but the first."""
    file = io.BytesIO()
    shown = [Pillow.open(io.BytesIO(picture(size=(70, 70)))), Pillow.new("RGB", (70, 70), "red")]
    shown[0].save(file, "WEBP", save_all=True, append_images=shown[1:], lossless=True)
    data = file.getvalue()
    at = data.rindex(b"ANMF")
    (length,) = struct.unpack("<I", data[at + 4 : at + 8])
    body = data[8:] + data[at : at + 8 + length] * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _said(format: str, **options: object) -> bytes:
    """A picture with something beside its pixels."""
    file = io.BytesIO()
    with Pillow.open(io.BytesIO(picture())) as opened:
        opened.save(file, format, **options)
    return file.getvalue()


def _files() -> Iterator[Attack]:
    """Files that are no picture, or more than one, or try the decoder."""
    true = zlib.compress((b"\0" + bytes(range(256)) * 2) * 100)
    swelling = _chunk(b"zTXt", b"Comment\0\0" + bombs.zeros(30))
    profile = _chunk(b"iCCP", b"x\0\0" + bombs.zeros(30))
    good_png = picture("PNG")
    loop = b"MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHII", 0x8769, 4, 1, 8) * 2 + b"\0\0\0\x08"
    shapes: dict[str, tuple[bytes, DropReason | None]] = {
        "png of 900 million pixels": (_png(30_000, 30_000, true) + bytes(9000),
                                      DropReason.TOO_MANY_PIXELS),
        "png that swells": (_png(100, 100, bombs.zeros(500)), None),
        "png with a text that swells": (good_png[:33] + swelling + good_png[33:], None),
        "png with a profile that swells": (good_png[:33] + profile + good_png[33:], None),
        "jpeg of 60000 squared": (_claimed("JPEG"), DropReason.TOO_MANY_PIXELS),
        "webp of 16000 squared": (_claimed("WEBP"), DropReason.TOO_MANY_PIXELS),
        "cut short": (JPEG[:6000], DropReason.BROKEN_IMAGE),
        "cut png": (good_png[:-40], DropReason.BROKEN_IMAGE),
        "an archive behind": (JPEG + b"PK\x03\x04" + b"<script>steal()</script>" * 300, None),
        "a page in a comment": (_said("JPEG", comment=b"<script>steal()</script>" * 300), None),
        "ten thousand frames": (_moving(10_000), None),
        "exif that bites its tail": (_said("JPEG", exif=b"Exif\0\0" + loop), None),
        "a profile of nonsense": (_said("JPEG", icc_profile=b"\xff" * 60_000), None),
        "four colours": (picture(mode="CMYK"), None),
        "sixteen bits": (picture("PNG", mode="I;16"), None),
        "a palette": (picture("PNG", (200, 160), mode="P"), None),
        "see through": (picture("PNG", mode="RGBA"), None),
        "a page": (b"<!doctype html><title>Sorry</title>" * 300, DropReason.NOT_AN_IMAGE),
        "a drawing": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='steal()'/>" * 200,
                      DropReason.NOT_AN_IMAGE),
        "gif and jpeg": (b"GIF89a" + JPEG, DropReason.NOT_AN_IMAGE),
        "nothing": (b"", DropReason.NOT_AN_IMAGE),
        "endless scans": (_scans(), DropReason.BROKEN_IMAGE),
    }  # fmt: skip
    for name, (data, reason) in shapes.items():
        answer = w.body(data, ("Content-Type", "image/jpeg"))
        yield Attack(name=name, serves=answer, reason=reason)


def _scans() -> bytes:
    data = picture("JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:-2] + data[scan:-2] * 100 + b"\xff\xd9"


def _texts() -> Iterator[Attack]:
    """Captions that attack whoever stores, shows or reads them."""
    alts: dict[str, tuple[str, DropReason | None]] = {
        "control characters": (CAPTION + "\x00\x07\x1b[2J\x7f", None),
        "right to left": (CAPTION + " \u202egpj.exe\u2066", None),
        "ten megabytes": ("word " * 2_000_000, DropReason.LONG_TEXT),
        "a script in a text": (f"{CAPTION} <script>alert(1)</script>", None),
        "a formula": ("=HYPERLINK(A1) shows the photo of an old harbour in the evening", None),
        "half a character": (f"{CAPTION} \ud83d", None),
        "a prompt": (f"{CAPTION} '; DROP TABLE pairs; --", None),
    }
    for name, (alt, reason) in alts.items():
        yield Attack(name=name, alt=alt, serves=w.body(JPEG), reason=reason)


def attacks() -> list[Attack]:
    """All of them."""
    every = (_names, _addresses, _redirects, _servers, _tls, _owners, _files, _texts)
    return [attack for each in every for attack in each()]


@dataclass(frozen=True)
class Rotten:
    """An attack on whoever reads the crawl: a member of the WAT, and what it is counted as."""

    name: str
    member: bytes
    reason: DropReason | None  #: None: a page


@functools.cache
def rotten() -> list[Rotten]:
    """All of them."""
    html = b'{"Envelope":{"Payload-Metadata":{"HTTP-Response-Metadata":{"HTML-Metadata":%s}}}}'
    link = b'{"path":"IMG@/src","url":"http://w.attack/a.jpg"}'

    def page(body: bytes) -> bytes:
        return wat.member("metadata", "http://w.attack/", "application/json", html % body)

    deep = b"[" * 200_000
    return [
        Rotten("deep nesting", page(b'{"Links":%sIMG@' % deep), DropReason.BROKEN_RECORD),
        Rotten("deep and whole", page(b'{"IMG@":%s%s}' % (deep, b"]" * 200_000)),
               DropReason.BROKEN_RECORD),
        Rotten("a huge line", page(b'{"Links":[%s],"x":"%s"}' % (link, b"x" * 20_000_000)),
               DropReason.NO_TEXT),
        Rotten("keys twice", page(b'{"Links":[],"Links":[%s],"Links":7}' % link), None),
        Rotten("wrong types", page(b'{"Links":{"IMG@/src":[1,null]},"Head":[3]}'), None),
        Rotten("no JSON", page(b"IMG@ \xff\xfe{{{"), DropReason.BROKEN_RECORD),
        Rotten("a bomb", bombs.gzipped(300, b"WARC/1.0\r\n"), DropReason.BROKEN_MEMBER),
        Rotten("a length of nonsense", gzip.compress(
            b"WARC/1.0\r\nContent-Length: -5\r\n\r\n{}\r\n\r\n"), DropReason.BROKEN_RECORD),
    ]  # fmt: skip


def crawl(every: Sequence[Attack], good: Sequence[str]) -> bytes:
    """A WAT file that shows all attacks, and good pictures among them."""
    parts = [wat.warcinfo("adversary")]
    for attack in every:
        shown = [{"path": "IMG@/src", "url": url, "alt": attack.alt} for url in attack.urls]
        for start in range(0, len(shown), 2000):
            parts += wat_page(f"http://{attack.host}/{start}.html", shown[start : start + 2000])
    parts += [each.member for each in rotten()]
    shown = [{"path": "IMG@/src", "url": url, "alt": CAPTION} for url in good]
    parts += wat_page("http://good.attack/", shown)
    return b"".join(parts)


def wat_page(url: str, links: Sequence[dict[str, str]]) -> Iterator[bytes]:
    """A page's members; JSON with escapes can say what UTF-8 cannot."""
    html = {"HTML-Metadata": {"Head": {}, "Links": links}}
    record = {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": html}}}
    yield wat.member("metadata", url, "application/json", json.dumps(record).encode())

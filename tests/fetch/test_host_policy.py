"""What owners refuse is not fetched, or not kept; whoever is asked too often is left alone."""

import gzip
import json
import sys
import time
import zlib

import brotli
import pytest

from cahlib.core.records import DropReason, Evidence
from cahlib.demo.web import Answer
from tests.world import web as w
from tests.world.fetched import fetched

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
from tests.world.one_host import HOST, JPEG, fetch

REFUSE = b"User-agent: *\nDisallow: /no/\nContent-Usage: /train/ train-ai=n\n"
SIGNAL = b"User-agent: *\nContent-Signal: search=yes,ai-train=no\nAllow: /\n"  # Cloudflare's


def test_robots_is_asked_once_and_before_anything_else():
    paths = [f"/{'no' if n % 2 else 'ok'}/{n}.jpg" for n in range(20)]
    kept, lost, evidence, asked = fetch({"/robots.txt": Answer(body=REFUSE)}, *paths)
    assert kept == sorted(paths[::2])
    assert lost == {DropReason.OPTED_OUT: 10}
    assert asked.count("/robots.txt") == asked.count("/.well-known/tdmrep.json") == 1
    assert not [path for path in asked if path.startswith("/no/")]
    said = evidence.optouts[0]
    assert (said.signal, said.value) == ("robots.txt", "disallow: /no/")
    assert said.where == f"{HOST}/robots.txt"
    assert said.time > 1.7e9


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=404), None),
        (Answer(status=401), None),
        (Answer(body=b"<h1>Hello</h1>"), None),
        (Answer(body=b""), None),
        (Answer(body=b"\xff\xfe\x00" * 99), None),
        (Answer(status=302, headers=[("Location", "/robots.txt")]), None),  # for ever: unavailable
        (Answer(status=503), DropReason.NO_ROBOTS),
        (Answer(status=429), DropReason.NO_ROBOTS),
        (Answer(delay=60), DropReason.NO_ROBOTS),
        (Answer(body=REFUSE, cut=5), DropReason.NO_ROBOTS),
        (Answer(raw=True, body=b"220 mail\r\n"), DropReason.NO_ROBOTS),
        (Answer(body=b"User-agent: *\nDisallow: /"), DropReason.OPTED_OUT),
        (Answer(body=gzip.compress(b"User-agent: *\nDisallow: /")), DropReason.OPTED_OUT),
        (Answer(body=b"User-agent: *\nDisallow: /\n" + b"#" * 2_000_000), DropReason.OPTED_OUT),
        (Answer(body=b"#" * 600_000 + b"\nUser-agent: *\nDisallow: /"), None),
        (Answer(status=301, headers=[("Location", "/rules")]), DropReason.OPTED_OUT),
    ],
)
def test_every_answer_to_the_question_for_robots_means_something(answer, reason):
    answers = {"/robots.txt": answer, "/rules": Answer(body=b"User-agent: *\nDisallow: /")}
    timeouts = {"read_timeout": 0.3} if answer.delay else {}
    kept, lost, _, _ = fetch(answers, "/a.jpg", **timeouts)
    assert (kept, dict(lost)) == (["/a.jpg"], {}) if reason is None else ([], {reason: 1})


ALL = b"User-agent: *\nDisallow: /\n"
_RAW = zlib.compressobj(wbits=-15)
PACKED = {
    "gzip": gzip.compress(ALL),
    "deflate": zlib.compress(ALL),
    "raw deflate": _RAW.compress(ALL) + _RAW.flush(),
    "br": brotli.compress(ALL),
    "zstd": zstd.compress(ALL),
    "gzip, br": brotli.compress(gzip.compress(ALL)),
}


def packed(body, coding, status=200):
    return Answer(
        body=body, headers=[("Content-Encoding", coding.removeprefix("raw "))], status=status
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        *((packed(body, coding), DropReason.OPTED_OUT) for coding, body in PACKED.items()),
        *((packed(body[:-4], coding), DropReason.NO_ROBOTS) for coding, body in PACKED.items()),
        (packed(ALL, "gzip"), DropReason.OPTED_OUT),  # not packed at all
        (packed(ALL, "none"), DropReason.OPTED_OUT),
        (packed(b"\x8b\x05\x80\xff\xfe", "br"), DropReason.NO_ROBOTS),
        (packed(brotli.compress(ALL + b"#" * 50_000_000, quality=1), "br"), DropReason.OPTED_OUT),
        (Answer(body=PACKED["zstd"]), DropReason.OPTED_OUT),  # without a word
        (Answer(body=PACKED["deflate"]), DropReason.OPTED_OUT),
        (Answer(body=ALL.decode().encode("utf-16")), DropReason.OPTED_OUT),
        (Answer(body=b"\xfe\xff" + ALL.decode().encode("utf-16-be")), DropReason.OPTED_OUT),
        (Answer(body=ALL.decode().encode("utf-16-le")), DropReason.OPTED_OUT),
        (Answer(body=ALL.decode().encode("utf-16-be")), DropReason.OPTED_OUT),
        (Answer(body=ALL.decode().encode("utf-32")), DropReason.OPTED_OUT),
        (Answer(body=b"\xef\xbb\xbf" + ALL), DropReason.OPTED_OUT),
        (Answer(body=b"# caf\xe9\n" + ALL), DropReason.OPTED_OUT),
        (packed(gzip.compress(ALL.decode().encode("utf-16")), "x-gzip"), DropReason.OPTED_OUT),
        (Answer(body=ALL, status=203), DropReason.OPTED_OUT),
        (Answer(body=ALL, status=206), DropReason.NO_ROBOTS),
        (
            Answer(body=ALL, status=206, headers=[("Content-Range", f"bytes 0-{len(ALL) - 1}/99")]),
            DropReason.NO_ROBOTS,
        ),
        (
            Answer(
                body=ALL,
                status=206,
                headers=[("Content-Range", f"bytes 0-{len(ALL) - 1}/{len(ALL)}")],
            ),
            DropReason.OPTED_OUT,
        ),
        (Answer(status=204), None),
        (Answer(body=b"User-agent: *\nDisallow: /caf\xe9"), None),
    ],
)
def test_a_refusal_counts_however_it_is_packed(answer, reason):
    kept, lost, _, _ = fetch({"/robots.txt": answer}, "/a.jpg")
    assert (kept, dict(lost)) == (["/a.jpg"], {}) if reason is None else ([], {reason: 1})


def test_a_path_in_latin_1_is_the_one_that_is_asked():
    kept, lost, _, _ = fetch(
        {"/robots.txt": Answer(body=b"User-agent: *\nDisallow: /caf\xe9")}, "/caf%e9.jpg", "/c.jpg"
    )
    assert (kept, dict(lost)) == (["/c.jpg"], {DropReason.OPTED_OUT: 1})


def test_a_redirect_to_nowhere_is_asked_once():
    for location in ([], [("Location", "")], [("Location", "/a.jpg#top")]):
        answer = Answer(status=302, headers=location)
        _, lost, _, asked = fetch({"/a.jpg": answer, "/robots.txt": answer}, "/a.jpg")
        assert dict(lost) == {DropReason.BAD_REDIRECT: 1}
        assert asked.count("/a.jpg") == 1 + (location[-1:] == [("Location", "/a.jpg#top")])


SIGNALS = {
    "robots.txt": ({"/robots.txt": Answer(body=REFUSE)}, "/no/a.jpg", "strict research"),
    "robots.txt content-usage": ({"/robots.txt": Answer(body=REFUSE)}, "/train/a.jpg", "strict"),
    "robots.txt content-usage (Content-Signal)": (
        {"/robots.txt": Answer(body=SIGNAL)},
        "/a.jpg",
        "strict",
    ),
    "tdmrep.json": (
        {
            "/.well-known/tdmrep.json": Answer(
                body=json.dumps(
                    [
                        {"location": "/open/*", "tdm-reservation": 0},
                        {"location": "/*", "tdm-reservation": 1},
                    ]
                ).encode()
            )
        },
        "/a.jpg",
        "strict",
    ),
    "x-robots-tag": (
        {"/a.jpg": Answer(body=JPEG, headers=[("X-Robots-Tag", "noai")])},
        "/a.jpg",
        "strict headers",
    ),
    "tdm-reservation": (
        {"/a.jpg": Answer(body=JPEG, headers=[("tdm-reservation", "1")])},
        "/a.jpg",
        "strict headers",
    ),
    "content-usage": (
        {"/a.jpg": Answer(body=JPEG, headers=[("Content-Usage", "train-ai=n")])},
        "/a.jpg",
        "strict headers",
    ),
    "content-signal": (
        {"/a.jpg": Answer(body=JPEG, headers=[("Content-Signal", "search=yes, ai-train=no")])},
        "/a.jpg",
        "strict headers",
    ),
}


@pytest.mark.parametrize("consent", ["strict", "headers", "research"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_profile_says_what_is_honoured(signal, consent):
    answers, path, honoured = SIGNALS[signal]
    signal = signal.partition(" (")[0]
    kept, lost, evidence, _ = fetch(answers, path, consent=consent)
    if consent in honoured.split():
        assert lost == {DropReason.OPTED_OUT: 1}
        assert [each.signal for each in evidence.optouts] == [signal]
    else:
        assert kept == [path]
        # what is heard without being honoured is recorded; headers are with the sample itself
        heard = signal == "robots.txt content-usage" and consent == "research"
        assert [(each.signal, each.obeyed) for each in evidence.optouts] == [
            (signal, False)
        ] * heard


def test_a_place_that_is_not_reserved_is_fetched():
    answers, _, _ = SIGNALS["tdmrep.json"]
    assert fetch(answers, "/open/a.jpg")[0] == ["/open/a.jpg"]


ROUNDABOUT = [
    "/public/../no/a.jpg",
    "/public/%2e%2E/no/a.jpg",
    "/a/./.%2e/./no/a.jpg?x=/../",
    "/../no/a.jpg",
    "/public\\..\\no\\a.jpg",
    "/\\..\\no/a/..",
]


@pytest.mark.parametrize("signal", ["robots.txt", "robots.txt content-usage", "tdmrep.json"])
def test_rules_are_not_walked_around(signal):
    rules = {
        "robots.txt": b"User-agent: *\nDisallow: /no/\nContent-Usage: train-ai=n\n",
        "robots.txt content-usage": b"User-agent: *\nContent-Usage: /no/ train-ai=n\n",
        "tdmrep.json": b'[{"location": "/no/*", "tdm-reservation": 1}]',
    }
    file = "/.well-known/tdmrep.json" if signal == "tdmrep.json" else "/robots.txt"
    fine = {  # written, and asked
        "/public/../ok/a.jpg": "/ok/a.jpg",
        "/ok/%2e%2e/b.jpg?x=/../no/": "/b.jpg?x=/../no/",
        "/ok/...no/c.jpg": "/ok/...no/c.jpg",
        "/ok\\d.jpg": "/ok/d.jpg",
        "/no/../public/a.jpg": "/public/a.jpg",
    }
    answers = {path: Answer(body=JPEG) for path in fine.values()}
    answers[file] = Answer(body=rules[signal])
    consent = "research" if signal == "robots.txt" else "strict"
    kept, lost, evidence, asked = fetch(answers, *ROUNDABOUT, *fine, consent=consent)
    assert (kept, dict(lost)) == (sorted(fine), {DropReason.OPTED_OUT: len(ROUNDABOUT)})
    obeyed = [each.signal for each in evidence.optouts if each.obeyed]
    assert obeyed == [signal] * len(ROUNDABOUT)
    assert {path for path in asked if "known" not in path} == {"/robots.txt", *fine.values()}


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"location": 3}]', b"[" * 100_000])
def test_a_broken_reservation_reserves_nothing(body):
    assert fetch({"/.well-known/tdmrep.json": Answer(body=body)}, "/a.jpg")[0] == ["/a.jpg"]


def test_hostile_reservations_cost_little():
    rule = {"location": "/b" + "%C3%A9" * 80, "tdm-reservation": 1}
    body = json.dumps([rule] * 900).encode()

    def cost(count):
        paths = [f"/a{n}.jpg?{'%C3%A9' * 300}" for n in range(count)]
        start = time.process_time()
        kept, *_ = fetch({"/.well-known/tdmrep.json": Answer(body=body)}, *paths)
        assert len(kept) == count
        return time.process_time() - start

    cost(1)  # what is loaded once
    assert cost(10) < 5 * cost(1)  # what is done for each image costs ten times as much


def test_owners_are_asked_as_politely_as_for_images():
    def slowly(talk):
        talk.wait(0.05)
        w.body(b"", status=404)(talk)

    paths = {"/robots.txt": slowly, "/.well-known/tdmrep.json": slowly, "/a.jpg": w.body(JPEG)}
    with w.Web(paths) as web:
        urls = [f"http://host{n}.example.com/a.jpg" for n in range(5)]
        start = time.monotonic()
        arrived, _ = fetched(web, *urls, consent="strict", per_second=5, total_timeout=2.5)
        assert time.monotonic() - start > 14 / 5
        assert len(arrived) == 5
        assert len(web.asked) == 15
        fetched(web, "http://a.example.com/a.jpg", consent="strict", per_host=1)
    assert set(web.busiest.values()) == {1}


@pytest.mark.parametrize("answer", [w.body(b"", status=503), w.raw(b"220 mail\r\n")])
def test_a_server_that_answers_is_not_silent_for_its_broken_robots(answer):
    evidence = Evidence()
    with w.Web({"/robots.txt": answer}) as web:
        urls = [f"http://a.example/{n}.jpg" for n in range(5)]
        _, stats = fetched(web, *urls, consent="strict", evidence=evidence)
    assert stats.dropped == {DropReason.NO_ROBOTS: 5}
    assert evidence.silent == []


def test_a_redirect_does_not_lead_around_robots():
    answers = {
        "/robots.txt": Answer(body=REFUSE),
        "/go.jpg": Answer(status=302, headers=[("Location", "/no/a.jpg")]),
    }
    kept, lost, _, asked = fetch(answers, "/go.jpg")
    assert (kept, dict(lost)) == ([], {DropReason.OPTED_OUT: 1})
    assert "/no/a.jpg" not in asked


def test_a_domain_that_says_go_away_is_asked_no_more():
    paths = [f"/{n}.jpg" for n in range(60)]
    answers = {path: Answer(status=403) for path in paths}
    _, lost, evidence, asked = fetch(answers, *paths, max_failures=5, per_host=2, per_second=0)
    assert lost[DropReason.HTTP_4XX] + lost[DropReason.LEFT_ALONE] == 60
    assert lost[DropReason.HTTP_4XX] <= 7
    assert len(asked) <= 9
    assert evidence.silent == []


def test_a_server_that_asks_for_a_pause_gets_it():
    tired = [Answer(status=503, headers=[("Retry-After", "1")]), Answer(body=JPEG)]
    kept, _, _, _ = fetch({"/a.jpg": tired}, "/a.jpg")
    assert kept == ["/a.jpg"]
    busy = [Answer(status=429, headers=[("Retry-After", "3")]), Answer(body=JPEG)]
    kept, _, _, _ = fetch({"/a.jpg": busy}, "/a.jpg", total_timeout=2.9)
    assert kept == ["/a.jpg"], "the pause that a server asks for is not its slowness"
    gone = Answer(status=429, headers=[("Retry-After", "100000")])
    paths = [f"/{n}.jpg" for n in range(30)]
    _, lost, _, _ = fetch(dict.fromkeys(paths, gone), *paths, per_host=1, per_second=0)
    assert lost == {DropReason.TOO_OFTEN: 1, DropReason.LEFT_ALONE: 29}


def test_one_domain_has_its_share_of_a_shard_only():
    paths = [f"/{n}.jpg" for n in range(30)]
    kept, lost, _, _ = fetch({}, *paths, per_domain=10, per_second=0)
    assert (len(kept), dict(lost)) == (10, {DropReason.TOO_MANY_LINKS: 20})

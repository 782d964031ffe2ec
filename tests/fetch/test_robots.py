"""robots.txt, by the letters of RFC 9309."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from protego import Protego

from cahlib.fetch.robots import RobotsTxt

EVERYBODY = "User-agent: *\n"


@pytest.mark.parametrize(
    ("rules", "target", "allowed"),
    [
        ("", "/a.jpg", True),
        ("Disallow:", "/a.jpg", True),
        ("Disallow: /", "/a.jpg", False),
        ("Disallow: /", "/robots.txt", True),
        ("disallow : /a", "/a.jpg", False),
        ("Disallow: /A", "/a.jpg", True),  # paths tell letters apart
        ("Disallow: /a # not this", "/a.jpg", False),
        ("Disallow: /\nAllow: /img/", "/img/a.jpg", True),  # the longest counts, in any order
        ("Allow: /img/\nDisallow: /", "/img/a.jpg", True),
        ("Allow: /a\nDisallow: /a", "/a", True),  # of two as long the one that allows
        ("Disallow: /*.jpg$", "/b/a.jpg", False),
        ("Disallow: /*.jpg$", "/b/a.jpg?x", True),
        ("Disallow: /*/private/*", "/a/private/b.jpg", False),
        ("Disallow: *.jpg", "/a.jpg", False),
        ("Disallow: /a$", "/a", False),
        ("Disallow: /a$", "/ab", True),
        ("Disallow: /a*b*c$", "/abc", False),
        ("Disallow: /a*bc$", "/abcd", True),
        ("Disallow: /?id=", "/?id=3", False),
        ("Disallow: /%7Ejoe/", "/~joe/a.jpg", False),
        ("Disallow: /caf%C3%A9", "/caf%c3%a9.jpg", False),
        ("Disallow: /café", "/caf%C3%A9.jpg", False),
        ("Disallow: /a%2Fb", "/a/b", True),
        ("Crawl-delay: 5\nDisallow: /a", "/a.jpg", False),
        # what Google's parser forgives
        ("Dissallow: /a", "/a.jpg", False),
        ("disalow: /a", "/a.jpg", False),
        ("Dissalow: /a", "/a.jpg", False),
        ("DIASLLOW: /a", "/a.jpg", False),
        ("Disallaw: /a", "/a.jpg", False),
        ("Disallowed: /a", "/a.jpg", False),
        ("Disallow /a", "/a.jpg", False),
        ("Disallow /a b", "/a.jpg", True),
        ("Disallow: /\nAllow /img", "/img/a.jpg", True),
        ("Deny: /a", "/a.jpg", True),
    ],
)
def test_rules_for_everybody(rules, target, allowed):
    assert (RobotsTxt(EVERYBODY + rules).disallowing_line(target) is None) is allowed


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("User-agent: cahlib\nDisallow: /\n", False),
        ("User-agent: CAHLIB/9.9\nDisallow: /\n", False),
        ("User-agent: otherbot\nDisallow: /\n", True),
        ("User-agent: cahlibx\nDisallow: /\n", True),
        # a group that names us is the only one that counts
        ("User-agent: *\nDisallow: /\n\nUser-agent: cahlib\nAllow: /\n", True),
        ("User-agent: *\nAllow: /\n\nUser-agent: cahlib\nDisallow: /\n", False),
        # groups of one agent are one, and a group may have several agents
        (
            "User-agent: cahlib\nAllow: /b\n\nUser-agent: x\n\nUser-agent: cahlib\nDisallow: /",
            False,
        ),
        ("User-agent: x\nUser-agent: cahlib\nDisallow: /\n", False),
        ("User-agent: cahlib\nAllow: /b\nUser-agent: x\nDisallow: /\n", True),
        ("\ufeffUser-agent: *\r\nDisallow: /\r\n", False),
        ("User-agent: *\rDisallow: /\r", False),
        ("Disallow: /\n", True),  # rules of no group
        ("<html><body>Not found</body></html>", True),
        ("Useragent: *\nDisallow: /\n", False),
        ("User Agent: cahlib\nDisallow: /\n", False),
        ("User-agent *\nDisallow: /\n", False),
        ("USER-AGENT : Cahlib/2.0\nDisallow: /\n", False),
        ("Useragent: otherbot\nDisallow: /\n", True),
    ],
)
def test_groups(text, allowed):
    assert (RobotsTxt(text).disallowing_line("/a.jpg") is None) is allowed


def test_the_line_is_the_evidence():
    assert (
        RobotsTxt(EVERYBODY + "Disallow: /img/ # ours").disallowing_line("/img/a")
        == "disallow: /img/"
    )


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("Content-Usage: train-ai=n", True),
        ("Content-Usage: search=y, train-ai=n", True),
        ("content-usage: train-ai=y", False),
        ("Content-Usage: /img/ train-ai=n", True),
        ("Content-Usage: /other/ train-ai=n", False),
        ("Content-Usage: train-ai=n\nContent-Usage: /img/ train-ai=y", False),
        ("Content-Usage: something-new=n", False),
        ("Content-Usage: train-ai=n\nContent-Usage: train-ai=y", True),
        ("Content-Usage: train-ai=n\nContent-Usage: search=y", True),
        ("Content-Usage: /img/ train-ai=n\nContent-Usage: /img/ train-ai=y", True),
        ("Content-Usage: /img/\ttrain-ai=n", True),
        ("Content-Usage: /img/ \t train-ai=n", True),
        ("Content-Usage:", False),
    ],
)
def test_content_usage(line, refused):
    robots = RobotsTxt(EVERYBODY + line + "\nAllow: /")
    assert (robots.training_refusal("/img/a.jpg") is not None) is refused


@pytest.mark.parametrize(
    ("line", "refusing"),
    [
        ("Content-Signal: search=yes,ai-train=no", "content-signal: search=yes,ai-train=no"),
        ("content-signal: AI-Train = No # ours", "content-signal: AI-Train = No"),
        ("Content-Signal: /img/ ai-train=no", "content-signal: /img/ ai-train=no"),
        ("Content-Signal: /other/ ai-train=no", None),
        ("Content-Signal: search=yes, ai-input=no, ai-train=yes", None),
        ("Content-Usage: train-ai=y\nContent-Signal: ai-train=no", "content-signal: ai-train=no"),
    ],
)
def test_content_signal(line, refusing):
    assert RobotsTxt(EVERYBODY + line + "\nAllow: /").training_refusal("/img/a.jpg") == refusing


def test_hostile_rules_cost_little():
    wild = "".join(f"Disallow: /{'*a' * 100}{n}$\n" for n in range(20_000))
    plain = "".join(f"Disallow: /x{n}\n" for n in range(20_000))
    robots = RobotsTxt(EVERYBODY + wild + plain)
    start = time.process_time()
    for n in range(5):
        assert robots.disallowing_line("/" + "a" * 1900 + str(n) + "b") is None
    assert time.process_time() - start < 60  # it takes 0.5


@given(st.text(), st.text())
def test_no_file_is_too_strange(text, target):
    for robots in (RobotsTxt(text), RobotsTxt(EVERYBODY + f"disallow: {text}")):
        robots.disallowing_line("/" + target)
        robots.training_refusal("/" + target)


# Protego reads "?" apart from what stands before it, and does not count a "*" at a path's end; by
# RFC 9309, 2.2.2, both are octets like others.
_PATH = st.text("ab/*$=.", max_size=8).map(lambda text: "/" + text.rstrip("*"))
_TARGET = st.text("ab/=.", max_size=10).map("/".__add__)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(["Allow", "Disallow"]), _PATH), max_size=6), _TARGET)
@example([("Disallow", "/a*$")], "/ab")
@example([("Allow", "/?a"), ("Disallow", "/?")], "/?a")
def test_rules_are_understood_as_another_reader_does(rules, target):
    text = EVERYBODY + "".join(f"{name}: {path}\n" for name, path in rules)
    # a path is compared as it is written; Protego takes an address apart, and "//" begins a host
    known = Protego.parse(text).can_fetch(f"http://a.example{target}", "cahlib")
    assert (RobotsTxt(text).disallowing_line(target) is None) is known

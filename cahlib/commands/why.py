"""`cah why`: what became of a link, a pair or a domain, with the evidence."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cahlib.commands.console import print_result
from cahlib.core.terminal import print_note
from cahlib.core.wording import plural, verb

if TYPE_CHECKING:
    from cahlib.dataset.show.explain import Explanation, Match

#: Characters of a text or a URL that are shown.
_MOST = 300

#: Characters that could control a terminal, or hide what is written.
_HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def add(commands: Any) -> None:
    """Add the command."""
    why = commands.add_parser(
        "why",
        help="tell what became of a link, and why",
        description="Tell what became of an image's URL, a page's URL, the uid of a pair, or all "
        "links of a\ndomain: kept or dropped, why, what the server answered, and the opt-outs.",
        example="cah why demo-dataset https://example.org/cat.jpg",
    )
    why.add_dataset()
    why.add_argument("link", metavar="URL|UID|DOMAIN", help="what to look for")
    why.add_json()
    why.set_defaults(act=_why)


def _why(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.show.explain import explain, parse_query
    from cahlib.fetch.urls import normalize_url

    query = parse_query(chosen.link)
    if query.kind == "url":  # also as a crawl writes it
        given = query.words[0]
        bare = given.partition("#")[0]
        query = query._replace(words=tuple(dict.fromkeys((given, bare, normalize_url(bare)))))
    found = explain(chosen.dataset, query)
    print_result(chosen, _as_json(chosen, found), _lines(chosen.link, found))
    if found.shards_without_outcomes:
        print_note(
            f"{plural(found.shards_without_outcomes, 'shard')} of {found.shards} "
            f"{verb(found.shards_without_outcomes, 'has', 'have')} no outcomes, so only "
            f"pairs and opt-outs of {verb(found.shards_without_outcomes, 'it', 'them')} are known."
        )
    return 0


def _lines(link: str, found: Explanation) -> Iterator[str]:
    total, shown = found.reasons.total(), found.shown()
    if not total:
        yield from _unknown(link, found)
        return
    if total > len(shown):
        retries = (
            f", and {found.retries:,} {verb(found.retries, 'retry', 'retries')}"
            if found.retries
            else ""
        )
        yield f"{plural(total - found.retries, 'candidate')} of {_plain(link)}{retries}:"
        for reason, number in found.reasons.most_common():
            yield f"  {number:,} {_reason(reason, shown)}"
        yield "For example:"
    for each in shown:
        yield from _match_lines(each)
    if found.silent:
        yield f"The domain never answered in {plural(found.silent, 'shard')}."


def _reason(reason: str, shown: list[Match]) -> str:
    phrase = next((each.phrase for each in shown if each.reason == reason), "")
    return f"{_plain(reason)}: {phrase}" if phrase else _plain(reason)


def _unknown(link: str, found: Explanation) -> Iterator[str]:
    """Yield what can be said of a link that no shard knows."""
    yield f"No candidate of this dataset matches {_plain(link)}."
    if found.silent:
        yield f"The domain never answered in {plural(found.silent, 'shard')}."
    if before := found.dropped_before.most_common(5):
        listed = ", ".join(f"{number:,} {name}" for name, number in before)
        yield f"Links that were dropped before they became candidates are only counted: {listed}."
    if found.erased:
        yield (
            f"The links of {plural(found.erased, 'outcome')} are not stored, because they were "
            "purged or dropped as known or possible harm."
        )


def _match_lines(match: Match) -> Iterator[str]:
    known = match.known
    yield _plain(str(known.get("url", known.get("uid", ""))))
    if match.phrase:
        yield f"  dropped, {_plain(match.reason)}: {match.phrase}"
    else:
        yield f"  kept, in {match.file or 'metadata/'}"
    if "similarity" in known:
        yield f"  similarity {known['similarity']:.4f}{_compared(match)}"
    if request := _request(known):
        yield f"  {request}"
    for each in match.evidence:
        ignored = "" if each.get("obeyed", True) else " (not honoured by this dataset's --consent)"
        yield (
            f"  opt-out by {_plain(str(each.get('signal')))} at {_plain(str(each.get('where')))}: "
            f"{_plain(str(each.get('value')))}{ignored}"
        )
    for name in ("text", "page", "uid"):
        if name in known:
            yield f"  {name} {_plain(str(known[name]))}"
    yield f"  shard {match.shard}"


def _compared(match: Match) -> str:
    if match.threshold is None:
        return ""
    if match.known["similarity"] < match.threshold:
        return f", below the threshold of {match.threshold:g}"
    # a model of a cascade drops for the same reason, by a similarity of its own
    other = "; a model of --cascade dropped it" if match.reason == "dissimilar" else ""
    return f", at or above the threshold of {match.threshold:g}{other}"


def _request(known: Any) -> str:
    """Return what fetching brought, as one phrase."""
    parts = []
    if "status" in known:
        parts.append(f"status {known['status']}")
    if "final_url" in known:
        parts.append(f"redirected to {_plain(known['final_url'])}")
    if "bytes" in known:
        parts.append(plural(known["bytes"], "byte"))
    if "ms" in known:
        parts.append(f"{known['ms']:,} ms")
    if known.get("attempt", 0) > 1:
        parts.append(plural(known["attempt"], "attempt"))
    return ", ".join(parts)


def _plain(text: str) -> str:
    """Return a stranger's text as one line that cannot control a terminal."""
    cut = text if len(text) <= _MOST else f"{text[:_MOST]}…"
    return _HIDDEN.sub("?", cut)


def _as_json(chosen: argparse.Namespace, found: Explanation) -> dict[str, Any]:
    return {
        "dataset": chosen.dataset,
        "link": chosen.link,
        "kind": found.query.kind,
        "found": found.reasons.total(),
        "retries": found.retries,
        "reasons": dict(found.reasons.most_common()),
        "matches": [
            {
                "shard": each.shard,
                "reason": each.reason,
                "file": each.file,
                "threshold": each.threshold,
                "evidence": [dict(one) for one in each.evidence],
                **each.known,
            }
            for each in found.shown()
        ],
        "shards": found.shards,
        "shards_without_outcomes": found.shards_without_outcomes,
        "silent_in_shards": found.silent,
        "erased": found.erased,
        "dropped_before": dict(found.dropped_before.most_common()),
    }

"""A crawl for tests: a WAT file from a readable list of oddities, and Common Crawl's server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cahlib.demo import wat
from cahlib.demo.web import Answer, Web

ODDITIES = Path(__file__).parent.parent / "data" / "oddities.txt"
NAME = "CC-MAIN-2024-10"


def serve(files: Mapping[str, bytes | Sequence[Answer]]) -> Web:
    """Common Crawl's server with one crawl, `NAME`, of these WAT files by name.

    A file may also be a sequence of answers, given in turn: trouble, then the file.
    """
    paths = {name: f"/crawl-data/{NAME}/segments/1/wat/{name}" for name in files}
    listed = gzip.compress("".join(f"{path[1:]}\n" for path in paths.values()).encode())
    answers: dict[str, Answer | Sequence[Answer]] = {
        f"/crawl-data/{NAME}/wat.paths.gz": Answer(body=listed)
    }
    for name, file in files.items():
        answers[paths[name]] = Answer(body=file) if isinstance(file, bytes) else file
    return Web(answers)


@dataclass
class Record:
    """A record of the list, and what must become of it: of each image, or of the whole."""

    kind: str
    url: str
    base: str = ""
    metas: list[dict[str, str]] = field(default_factory=list)
    links: list[dict[str, str]] = field(default_factory=list)
    json: str = ""
    answers: list[str] = field(default_factory=list)

    def member(self) -> bytes:
        """The gzip member that it is in a WAT file."""
        if self.kind == "page":
            page = wat.DemoPage(url=self.url, links=self.links, metas=self.metas, base=self.base)
            request, response, notes = wat.members(page)
            return response
        if self.kind in ("request", "notes"):
            request, response, notes = wat.members(wat.DemoPage(url=self.url))
            return request if self.kind == "request" else notes
        if self.kind == "json":
            return wat.member("metadata", self.url, "application/json", self.json.encode())
        whole = wat.member("metadata", "http://rotten.example.net/", "application/json", b"{}" * 99)
        return whole[:-20] if self.url == "cut" else whole[:-20] + bytes(20)


def oddities() -> list[Record]:
    """The records of the list, in their order."""
    records: list[Record] = []
    for line in ODDITIES.read_text(encoding="utf-8").splitlines():
        word, _, rest = line.partition(" ")
        if line.startswith("#") or not line:
            continue
        if word in ("page", "request", "notes", "json", "bytes"):
            records.append(Record(word, rest))
        elif word == "=>":
            records[-1].answers.append(rest)
        elif records[-1].kind == "json":
            records[-1].json += line
        else:
            _add(records[-1], word, rest)
    return records


def _add(page: Record, word: str, rest: str) -> None:
    """A line about a page."""
    if word == "base":
        page.base = rest
    elif word == "a":
        page.links.append({"path": "A@/href", "url": rest})
    elif word == "meta":
        name, _, content = rest.partition(" ")
        key, _, value = name.partition("=")
        page.metas.append({key: value, "content": content})
    else:
        shown, _, answer = rest.partition(" => ")
        url, bar, alt = shown.partition(" |")
        link = {"path": "IMG@/src", "url": _text(url)}
        page.links.append(link | {"alt": _text(alt.removeprefix(" "))} if bar else link)
        page.answers.append(answer)


def _text(written: str) -> str:
    return str(json.loads('"' + written.replace('"', '\\"') + '"'))

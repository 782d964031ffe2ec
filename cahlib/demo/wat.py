"""Writes WAT files in Common Crawl's layout: one gzip member a record, JSON in each.

For each page there are three records, about its request, its response and the crawler's notes, as
there are in the real files (checked against CC-MAIN-2023-06 and CC-MAIN-2024-22).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

_DATE = "2024-05-18T01:58:10Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPage:
    """A crawled page as a WAT tells of it."""

    url: str
    links: Sequence[Mapping[str, str]] = ()  #: ``{"path": "IMG@/src", "url": …, "alt": …}``
    title: str = ""
    metas: Sequence[Mapping[str, str]] = ()
    base: str = ""  #: as in ``<base href>``
    headers: Mapping[str, Any] = field(default_factory=dict)  #: repeated ones are lists


def warcinfo(name: str) -> bytes:
    """The first member of a file."""
    fields = f"Software-Info: cahlib.demo\r\nformat: WARC File Format 1.0\r\nisPartOf: {name}\r\n"
    return member("warcinfo", "", "application/warc-fields", fields.encode())


def members(page: DemoPage) -> Iterator[bytes]:
    """The three members about a page."""
    target = urlsplit(page.url)
    request = {"Method": "GET", "Path": target.path, "Version": "HTTP/1.1"}
    yield described(
        page.url,
        "request",
        {"HTTP-Request-Metadata": {"Request-Message": request, "Headers": {"Host": target.netloc}}},
    )
    yield described(page.url, "response", {"HTTP-Response-Metadata": _response(page)})
    notes = {"Metadata-Records": [{"Name": "fetchTimeMs", "Value": "120"}]}
    yield described(page.url, "metadata", {"WARC-Metadata-Metadata": notes})


def described(url: str, kind: str, payload: Mapping[str, Any]) -> bytes:
    """One member about a record of a WARC file: a "request", a "response" or "metadata"."""
    content = (
        "application/metadata-fields" if kind == "metadata" else f"application/http; msgtype={kind}"
    )
    text = {
        "Container": {"Filename": "cahlib-demo.warc.gz", "Compressed": True, "Offset": "0"},
        "Envelope": {
            "Payload-Metadata": {"Actual-Content-Type": content, **payload},
            "Format": "WARC/1.0",
            "WARC-Header-Metadata": {
                "WARC-Type": kind,
                "WARC-Date": _DATE,
                "Content-Type": content,
                "WARC-Target-URI": url,
            },
        },
    }
    body = json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode()
    return member("metadata", url, "application/json", body)


def member(kind: str, url: str, content: str, body: bytes) -> bytes:
    """One WARC record as a gzip member; the body may be anything."""
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        *([f"WARC-Target-URI: {url}"] if url else []),
        f"WARC-Date: {_DATE}",
        f"WARC-Record-ID: <urn:uuid:{uuid5(NAMESPACE_URL, url + str(len(body)))}>",
        f"Content-Type: {content}",
        f"Content-Length: {len(body)}",
    ]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return gzip.compress(head.encode() + body + b"\r\n\r\n", mtime=0)


def _response(page: DemoPage) -> dict[str, Any]:
    head: dict[str, Any] = {"Title": page.title, "Metas": list(page.metas)}
    if page.base:
        head["Base"] = page.base
    return {
        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
        "Headers": {"Content-Type": "text/html; charset=UTF-8", **page.headers},
        "HTML-Metadata": {"Head": head, "Links": list(page.links)},
    }

"""Rendering of the pages' templates, and responses with ETag and compression."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cahlib.tracker import charts, standings
from cahlib.tracker.models import Missing
from cahlib.tracker.service import of, shown_time

_SITE = Path(__file__).parent / "site"
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_SITE),
        autoescape=True,  # nicknames, errors and progress are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=charts.number, long=shown_time, ago=charts.ago, size=charts.size, date=charts.date,
        called=called,
    )  # fmt: skip
    files = b"".join(path.read_bytes() for path in sorted(_SITE.iterdir()))
    environment.globals.update(
        site=hashlib.sha256(files).hexdigest()[:8],  # of these files: browsers keep them
        periods=standings.PERIODS,
    )
    return environment


def called(name: str) -> str:
    """Return the query that asks for a person or a team, whatever is in the name."""
    return urlencode({"name": name}, quote_via=quote)


def page(template: str, request: Request, **values: Any) -> Response:
    """Return a page of the crawl."""
    crawls = of(request).crawls()
    of_crawl = f" {' to '.join(crawls)}" if crawls else ""
    values["about"] = (
        f"Volunteers turn the web pages of Common Crawl{of_crawl} into image–text pairs that "
        "models learn from."
    )
    return _page(template, request, values)


def refusal(request: Request, status: int, text: str, headers: Mapping[str, str]) -> Response:
    """Return a page that says why there is none; it needs no database."""
    refused = _page("refusal.html", request, {"text": text, "about": text})
    refused.status_code = status
    refused.headers.update(headers)
    return refused


def _page(template: str, request: Request, values: dict[str, Any]) -> Response:
    # relative: behind a proxy, all of this may lie below a path of which nobody tells us
    base = "../" * (request.url.path.count("/") - 1) or "./"
    service = of(request)
    more = {"now": service.clock(), "base": base, "title": service.settings.title}
    here = {"path": request.url.path}
    return answer(request, render(template, values | more | here), "text/html", _HEADERS)


def render(template: str, values: dict[str, Any]) -> str:
    """Return a template with these values, escaped."""
    return _PAGES.get_template(template).render(values)


def answer(
    request: Request, text: str, kind: str, headers: dict[str, str] | None = None
) -> Response:
    """Return a response with this text, compressed if accepted, or 304 if it has not changed."""
    body = text.encode()
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:16]}"'
    shown = {"ETag": tag, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
    shown |= headers or {}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=shown)
    if len(body) > 1000 and re.search(r"\bgzip\b(?!;q=0(\.0*)?(,|$))", _accepted(request)):
        body = gzip.compress(body, 5)
        shown["Content-Encoding"] = "gzip"
    return Response(body, media_type=f"{kind}; charset=utf-8", headers=shown)


def _accepted(request: Request) -> str:
    return request.headers.get("accept-encoding", "").replace(" ", "")


def file(request: Request, name: str) -> Response:
    """Return a style sheet, the script, or the icon; raise Missing."""
    path = _SITE / name
    if path.parent != _SITE or path.suffix not in _KINDS or not path.is_file():
        raise Missing("There is no such file.")
    # the pages name them by what is in them
    keep = {"Cache-Control": "max-age=31536000, immutable" if request.url.query else "no-cache"}
    return answer(request, path.read_text(encoding="utf-8"), _KINDS[path.suffix], keep)


_PAGES = _environment()

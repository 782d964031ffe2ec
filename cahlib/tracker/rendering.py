"""The pages' templates, and responses with ETag and compression."""

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
from cahlib.tracker.models import NotFound
from cahlib.tracker.service import get_service

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
        autoescape=True,  # nicknames, errors and progress are strangers' text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=charts.format_number, long=charts.human_duration, ago=charts.format_age,
        size=charts.human_size, date=charts.format_date, called=name_query,
    )  # fmt: skip
    files = b"".join(path.read_bytes() for path in sorted(_SITE.iterdir()))
    environment.globals.update(
        site=hashlib.sha256(files).hexdigest()[:8],  # in their URLs: browsers cache them
        periods=standings.PERIODS,
    )
    return environment


def name_query(name: str) -> str:
    """Return the query of a person's or team's page."""
    return urlencode({"name": name}, quote_via=quote)


def render_page(template: str, request: Request, **values: Any) -> Response:
    """Return a page of the crawl."""
    crawls = get_service(request).crawls()
    of_crawl = f" {' to '.join(crawls)}" if crawls else ""
    values["about"] = (
        f"Volunteers turn the web pages of Common Crawl{of_crawl} into image–text pairs for "
        "training models."
    )
    return _page(template, request, values)


def render_error(request: Request, status: int, text: str, headers: Mapping[str, str]) -> Response:
    """Return a page with an error; it needs no database."""
    response = _page("error.html", request, {"text": text, "about": text})
    response.status_code = status
    response.headers.update(headers)
    return response


def _page(template: str, request: Request, values: dict[str, Any]) -> Response:
    # relative, as a proxy may serve all of this below a path that the tracker does not know
    base = "../" * (request.url.path.count("/") - 1) or "./"
    service = get_service(request)
    more = {"now": service.clock(), "base": base, "title": service.settings.title}
    here = {"path": request.url.path}
    return respond(request, render_template(template, values | more | here), "text/html", _HEADERS)


def render_template(template: str, values: dict[str, Any]) -> str:
    """Return a template filled with these values, escaped."""
    return _PAGES.get_template(template).render(values)


def respond(
    request: Request, text: str, kind: str, headers: dict[str, str] | None = None
) -> Response:
    """Return a response, compressed if accepted, or 304 if it has not changed."""
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


def send_file(request: Request, name: str) -> Response:
    """Return a style sheet, the script, or the icon; raise NotFound."""
    path = _SITE / name
    if path.parent != _SITE or path.suffix not in _KINDS or not path.is_file():
        raise NotFound("This file does not exist.")
    # the pages add a hash of the content
    keep = {"Cache-Control": "max-age=31536000, immutable" if request.url.query else "no-cache"}
    return respond(request, path.read_text(encoding="utf-8"), _KINDS[path.suffix], keep)


_PAGES = _environment()

"""Heads of answers are mended only where they need it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cahlib.fetch import lenient_http

LINE = st.sampled_from(
    [
        "Content-Length: 7", "content-length: 007", "Content-Length: 7, 7", "Content-Length : 7",
        "Content-Length: 8", "Transfer-Encoding: chunked", "Transfer-Encoding: identity",
        "Content-Length-X: 9", "Connection: close", "ETag: \"a: b\"", "Odd line", " folded: 1",
        "X: \xe9", "X: a\tb", "X: a\x07b", "X:y", "X : y", "X-Robots-Tag: noai", "Empty: ",
    ]
)  # fmt: skip
STATUS = st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.1 404 ", "HTTP/1.0 200 OK", "ICY 200 OK"])


@settings(max_examples=500)
@given(STATUS, st.lists(LINE, max_size=4), st.lists(LINE, max_size=2))
def test_a_head_is_handed_on_as_it_came_only_if_it_needs_no_mending(status, before, after):
    lines = [status, *before, "Content-Length: 7", *after]
    head = "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")
    if lenient_http.is_regular(head):
        first, *rest = head.split(b"\r\n")
        mended, *others = (lenient_http.normalize_head(head) or b"").split(b"\r\n")
        assert mended[:12] == first[:12]
        assert sorted(map(bytes.strip, others)) == sorted(map(bytes.strip, rest))

"""The settings of what is read: a crawl, or tables of links."""

from __future__ import annotations

from dataclasses import dataclass

from cahlib.core.settings import Checked, option

#: What is given for a table whose captions shall not be read, or that has none.
NO_TEXT = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crawl(Checked):
    """The settings of what is read, and of which links in it become candidates."""

    crawl: str = option(
        "", "what to read: a crawl's name (CC-MAIN-2024-10), or a WAT file by path, glob or URL; "
        "for tables of links see --links",
        first="run",
    )  # fmt: skip
    links: tuple[str, ...] = option(
        (), "tables of links to read instead of a crawl: Parquet, CSV, TSV, JSON lines or Arrow, "
        "by path, glob or URL (https://…, hf://…, s3://…)",
        table=True,
    )  # fmt: skip
    url_column: str = option(
        "", "the table's column of links; found by its usual names if not given"
    )
    text_column: str = option(
        "", "the table's column of captions, found likewise; none = links alone, with --no-judge"
    )
    extra_columns: tuple[str, ...] = option(
        (), "columns of the table to carry along into the metadata, separated by commas; all = all"
    )
    shard_links: int = option(10_000, "rows of a table in a shard", least=1, most=100_000)
    shards: int = option(
        0, "number of shards (half a WAT file, or rows of a table) to process; 0 = all", least=0,
        most=999_999, free=True, first="run",
    )  # fmt: skip
    seed: int = option(
        0, "draw the shards at random with this seed; 0 = in the crawl's order", least=0
    )
    base_url: str = option(
        "https://data.commoncrawl.org/", "base URL that crawls are downloaded from", free=True
    )
    languages: tuple[str, ...] = option(
        ("en",), "languages to keep, as comma-separated tags (en, zh, zh-Hant, sr-Latn); all = any",
        topic="text",
    )  # fmt: skip
    language_evidence: str = option(
        "caption",
        "how to tell the language of a short caption: from the caption alone, as LAION did, or "
        "from its page too",
        choices=("caption", "page"), topic="text",
    )  # fmt: skip
    personal: str = option(
        "drop", "drop captions with e-mail addresses or phone, card or passport numbers, or mask "
        "these", choices=("drop", "mask"), topic="text",
    )  # fmt: skip
    min_text: int = option(
        5, "fewest letters in a caption; a CJK letter counts as three, an Indic or Thai one as two",
        least=1, most=1000, topic="text",
    )  # fmt: skip
    max_text: int = option(
        1000, "most characters in a caption", least=1, most=100_000, topic="text"
    )
    max_url: int = option(
        2000, "most characters in an image's URL", least=10, most=100_000, topic="text"
    )
    trust_text: bool = option(
        False,
        "keep captions that look like file names or junk, as in a curated table",
        topic="text",
    )
    caption_words: tuple[str, ...] = option(
        (), "files of words and phrases, one per line: keep captions that have one of them",
        file=True, topic="text",
    )  # fmt: skip
    caption_not: tuple[str, ...] = option(
        (), "files of words and phrases, one per line: drop captions that have one of them",
        file=True, grows=True, topic="text",
    )  # fmt: skip
    caption_regex: str = option(
        "", "keep captions in which this pattern is found (RE2's syntax; (?i) ignores case)",
        topic="text",
    )  # fmt: skip
    og_images: bool = option(
        False, "also take each page's og:image with its og:description", topic="text"
    )
    blocked_domains: tuple[str, ...] = option(
        (), "files of domains to skip, one per line; separate files with commas",
        file=True, grows=True, topic="text",
    )  # fmt: skip
    blocked_urls: tuple[str, ...] = option(
        (), "files of image URLs to skip, one per line; separate files with commas",
        file=True, grows=True, topic="text",
    )  # fmt: skip
    blocked_pairs: tuple[str, ...] = option(
        (), "files of pair hashes (hex md5 of URL + text) to skip: text files or .bloom filters",
        file=True, grows=True, topic="text",
    )  # fmt: skip

"""Writes README.md: the dataset's card, for people and for the hubs that host datasets.

Like the report it is made anew from the seals. It does not read the dataset's files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from cahlib.dataset.show.loading import loading_examples
from cahlib.dataset.show.summary import Summary, percentage, published_settings, summarize
from cahlib.dataset.storage.files import files_at
from cahlib.records import Stage
from cahlib.words import plural

#: Bounds of the hub's size classes: https://huggingface.co/docs/hub/datasets-cards
_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
          (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B")]  # fmt: skip

#: Whose terms hold for a dataset as a whole; `license: other` at the hub wants a name and a link.
_LICENCE, _TERMS = "common-crawl-terms-of-use", "https://commoncrawl.org/terms-of-use"

#: What the profiles of consent honour, for readers of a card.
_CONSENT = {
    "strict": "Honoured were (profile strict): robots.txt with its Content-Usage and "
    "Content-Signal, tdmrep.json, the headers X-Robots-Tag, tdm-reservation, Content-Usage and "
    "Content-Signal, and what pages say in their meta elements and headers. ",
    "headers": "Honoured were (profile headers): X-Robots-Tag, tdm-reservation, Content-Usage, "
    "Content-Signal, and "
    "what pages say in their meta elements and headers; robots.txt and tdmrep.json were not asked "
    "for. ",
    "research": "Honoured was (profile research) robots.txt alone; what owners said by headers is "
    "in the column robots, and was not obeyed. ",
}


def write_card(place: str | Path, job_values: Mapping[str, Any]) -> None:
    """Make the card of the dataset at a place; ``job_values`` are those of `Job.values`."""
    text = render_card(summarize(place), PurePath(place).name, job_values)
    files_at(place).write("README.md", text.encode("utf-8", "replace"))


def render_card(found: Summary, name: str, job_values: Mapping[str, Any]) -> str:
    """The card of a summary."""
    return "\n".join(_parts(found, name, job_values))


def _parts(found: Summary, name: str, job_values: Mapping[str, Any]) -> Iterator[str]:
    yield _front(found, name, job_values.get("languages", []))
    yield f"# {_cell(name)}\n"
    models = " and ".join(f"`{model}` from {threshold:g} on" for model, threshold in found.models)
    yield (
        f"{plural(found.pairs, 'image–text pair')} from {plural(found.shards, 'shard')} of Common "
        f"Crawl, found by cahlib. Kept are pairs whose text and image belong together: a cosine of "
        f"the embeddings by {models or 'no model yet'}; their mean is {found.similarity:.3f}. "
        "[report.html](report.html) shows it in pictures.\n"
    )
    yield "## How many, and why not more\n"
    yield "".join(f"{_cell(each)}\n" for each in found.warnings())
    yield _table(("step", "number"), [(step, f"{n:,}") for step, n in found.funnel()])
    yield _table(("lost in", "number", "share", "reason"), _lost(found))
    yield "## How to load it\n"
    yield from loading_examples(found, job_values)
    yield (
        "The key `uid` (hex md5 of URL and text) is the same in all files, and the rows of a shard "
        "have the same order in all of them. `cah verify .` checks the files.\n"
    )
    yield "## Settings\n"
    yield _table(("setting", "value"), published_settings(job_values))
    yield _table(("software", "version"), sorted(found.versions.items()))
    yield from _rights(found, job_values)


def _front(found: Summary, name: str, languages: list[str]) -> str:
    """What a hub reads."""
    size = next((label for bound, label in _SIZES if found.pairs < bound), "n>1B")
    # One config: HF datasets (5.2) reads each of a repository's with the builder of the first, so
    # one for the tars fails; the card shows how `load_dataset("webdataset", …)` reads them.
    # quoted: Norwegian's "no" means false in YAML
    codes = "".join(f'\n- "{code}"' for code in languages if code.isalpha() and len(code) < 4)
    language = f"language:{codes}\n" if codes and languages != ["all"] else ""
    return (
        f"---\npretty_name: {json.dumps(name)}\nlicense: other\n"
        f"license_name: {_LICENCE}\nlicense_link: {_TERMS}\n{language}"
        f"size_categories:\n- {size}\n"
        "task_categories:\n- image-to-text\n- text-to-image\n- zero-shot-image-classification\n"
        "configs:\n- config_name: default\n  data_files: metadata/*.parquet\n---\n"
    )


def _lost(found: Summary) -> Iterator[tuple[str, ...]]:
    for stage in Stage:
        entered = found.tally.entered[stage]
        for reason, number in found.lost(stage):
            yield stage.value, f"{number:,}", percentage(number, entered), reason.phrase


def _rights(found: Summary, job_values: Mapping[str, Any]) -> Iterator[str]:
    contact = str(job_values.get("contact") or "")
    yield "## Rights and care\n"
    yield (
        "The images and texts belong to their owners; the column LICENSE names the licence that a "
        "page links to, as a hint and not as an assurance. What the crawl says of them is Common "
        f"Crawl's, under its [terms of use]({_TERMS}). Nobody depicted was asked for consent. "
        "The dataset is meant for research. Its content is not curated: the column NSFW is a "
        "model's guess by prompts of cahlib's or the run's own wording, not LAION's, and what is "
        "wrong or harmful may be among it.\n"
    )
    yield (
        f"Left out, because their owners refuse such a use in a form that machines read: "
        f"{plural(found.optouts, 'image')}; the evidence is in optouts/. "
        f"{_CONSENT.get(str(job_values.get('consent')), '')}{_overruled(found)}"
        "The columns md5, sha1 and sha256 are those of the images as they were served, for lists "
        "of what must go; what is stored has no EXIF or other metadata.\n"
    )
    where = f"Write to {_cell(contact)}" if contact else "Write to whoever gave you this dataset"
    yield f"{where} to have something taken down, with its URL or uid.\n"


def _overruled(found: Summary) -> str:
    """What was heard and not obeyed, said aloud."""
    if not found.overruled:
        return ""
    return (
        f"Of {plural(found.overruled, 'candidate')} the owners refuse in a form that this profile "
        "does not honour; that stands in optouts/ as well, with obeyed: false. "
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """A text that stays in its cell and is no markup."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in " ".join(text.split()))

"""Write README.md: the dataset's card, for people and for hubs that host datasets.

Like the report it is made from the manifests; the dataset's files are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cahlib.core.records import Stage
from cahlib.core.wording import plural
from cahlib.dataset.show.loading import loading_examples
from cahlib.dataset.show.summary import (
    Summary,
    percentage,
    published_cascade,
    published_settings,
)

#: Bounds of the hub's size classes: https://huggingface.co/docs/hub/datasets-cards
_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
          (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B")]  # fmt: skip

#: The terms of a dataset as a whole; `license: other` at the hub requires a name and a link.
_LICENCE, _TERMS = "common-crawl-terms-of-use", "https://commoncrawl.org/terms-of-use"

#: What the consent profiles honour.
_CONSENT = {
    "strict": "Honoured (profile strict): robots.txt with its Content-Usage and "
    "Content-Signal, tdmrep.json, the headers X-Robots-Tag, tdm-reservation, Content-Usage and "
    "Content-Signal, and what pages say in their meta elements and headers. ",
    "headers": "Honoured (profile headers): X-Robots-Tag, tdm-reservation, Content-Usage, "
    "Content-Signal, and "
    "what pages say in their meta elements and headers; robots.txt and tdmrep.json were not "
    "requested. ",
    "research": "Honoured (profile research): robots.txt alone; what owners said in headers is in "
    "the column robots, and was not obeyed. ",
}


def render_card(found: Summary, name: str, job_values: Mapping[str, Any]) -> str:
    """Return the card of a summary."""
    return "\n".join(_parts(found, name, job_values))


def _parts(found: Summary, name: str, job_values: Mapping[str, Any]) -> Iterator[str]:
    yield _front(found, name, job_values.get("languages", []))
    yield f"# {_cell(name)}\n"
    models = " and ".join(f"`{model}` from {threshold:g} on" for model, threshold in found.models)
    kept = (
        "Pairs are kept if text and image match: by the cosine of their embeddings, "
        f"{models}; the mean is {found.similarity:.3f}."
        if models
        else "No model has judged whether text and image match."
    )
    if cascade := published_cascade(job_values):
        kept += f" Further models dropped what they found less similar: {_cell(cascade)}."
    yield (
        f"{plural(found.pairs, 'image–text pair')} from {plural(found.shards, 'shard')} of "
        f"{found.source}, found by cahlib. {kept} [report.html](report.html) has the charts.\n"
    )
    if found.added:
        also = (f"`{name}` by {_cell(model)}" for name, model in found.added.items())
        yield f"Columns of the metadata that the samples in images/ lack: {', '.join(also)}.\n"
    yield "## Numbers\n"
    yield "".join(f"{_cell(each)}\n" for each in found.warnings())
    yield _table(("step", "number"), [(step, f"{n:,}") for step, n in found.stage_counts()])
    yield _table(("dropped in", "number", "share", "reason"), _lost(found))
    yield "## How to load it\n"
    yield from loading_examples(found, job_values)
    yield (
        "The key `uid` (hex md5 of URL and text) is the same in all files, and all files of a "
        "shard have its rows in the same order. `cah verify .` checks the files.\n"
    )
    if found.outcomes:
        yield (
            "What became of every candidate, kept or dropped, is in outcomes/; `cah why . URL` "
            "tells it of one.\n"
        )
    yield "## Settings\n"
    yield _table(("setting", "value"), published_settings(job_values))
    yield _table(("software", "version"), sorted(found.versions.items()))
    yield from _rights(found, job_values)


def _front(found: Summary, name: str, languages: list[str]) -> str:
    """Return the front matter that hubs read."""
    size = next((label for bound, label in _SIZES if found.pairs < bound), "n>1B")
    # One config: HF datasets (5.2) reads each of a repository's with the builder of the first, so
    # one for the tars fails; the card shows how `load_dataset("webdataset", …)` reads them.
    # quoted: Norwegian's "no" means false in YAML
    codes = "".join(f'\n- "{code}"' for code in languages if code.isalpha() and len(code) < 4)
    language = f"language:{codes}\n" if codes and languages != ["all"] else ""
    crawl = f"license: other\nlicense_name: {_LICENCE}\nlicense_link: {_TERMS}\n"
    licence = crawl if _is_crawl(found) else ""
    return (
        f"---\npretty_name: {json.dumps(name)}\n{licence}{language}"
        f"size_categories:\n- {size}\n"
        "task_categories:\n- image-to-text\n- text-to-image\n- zero-shot-image-classification\n"
        "configs:\n- config_name: default\n  data_files: metadata/*.parquet\n---\n"
    )


def _lost(found: Summary) -> Iterator[tuple[str, ...]]:
    for stage in Stage:
        entered = found.stats.entered[stage]
        for reason, number in found.drop_counts(stage):
            yield stage.value, f"{number:,}", percentage(number, entered), reason.phrase


def _is_crawl(found: Summary) -> bool:
    return "Common Crawl" in found.source


def _rights(found: Summary, job_values: Mapping[str, Any]) -> Iterator[str]:
    contact = str(job_values.get("contact") or "")
    yield "## Rights and care\n"
    terms = "The tables of links have terms of their own."
    if _is_crawl(found):
        terms = f"The crawl's own data is Common Crawl's, under its [terms of use]({_TERMS})."
    yield (
        "The images and texts belong to their owners; the column LICENSE has the licence that a "
        f"page links to, as a hint and not as an assurance. {terms} The people depicted were not "
        "asked for consent. The dataset is meant for research. Its content is not curated: the "
        "column NSFW is a model's guess, by prompts of cahlib's or the run's own wording, not "
        "LAION's, and wrong or harmful content may be included.\n"
    )
    yield (
        f"Left out because their owners opted out in a machine-readable form: "
        f"{plural(found.optouts, 'image')}; the evidence is in optouts/. "
        f"{_CONSENT.get(str(job_values.get('consent')), '')}{_overruled(found)}"
        "The columns md5, sha1 and sha256 are those of the images as served, for lists of images "
        "to remove; the stored images have no EXIF or other metadata.\n"
    )
    where = f"Write to {_cell(contact)}" if contact else "Write to whoever gave you this dataset"
    yield f"{where} to have something taken down, with its URL or uid.\n"


def _overruled(found: Summary) -> str:
    """Return a sentence on the opt-outs that were not obeyed."""
    if not found.overruled:
        return ""
    return (
        f"The owners of {plural(found.overruled, 'candidate')} opted out in a form that this "
        "profile does not honour; these are in optouts/ as well, with obeyed: false. "
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """Return a text that stays in its cell and contains no markup."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>#" else c for c in " ".join(text.split()))

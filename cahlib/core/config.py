"""The settings of a run: `Job`, which defines the options of the command line, form and Kaggle.

Each field carries its help text and its bounds; a value outside them is rejected with one sentence
that names the field. A Job is stored beside its dataset, so it never holds a secret.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

from cahlib.core.atomic import write_file
from cahlib.core.crawl_settings import NO_TEXT
from cahlib.core.crawl_settings import Crawl as Crawl
from cahlib.core.errors import ConfigError
from cahlib.core.fingerprint import fingerprint, json_checksum, setting_differences
from cahlib.core.judge_settings import NO_MODEL as NO_MODEL
from cahlib.core.judge_settings import Judge as Judge
from cahlib.core.resources import Resources
from cahlib.core.settings import Checked, Setting, option, settings_of

_log = logging.getLogger(__name__)

#: Former names of settings, still read in options, variables and stored Jobs.
FORMER_NAMES = {"patience": "max_failures", "left_alone": "skipped_domains"}

#: The key of a stored Job's checksum, beside its settings.
_SUM = "sha256"


class DamagedJob(ConfigError):
    """The file of a stored Job is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download(Checked):
    """The settings for fetching images, and for which of them to keep."""

    contact: str = option(
        "", "web page or e-mail address where site owners can reach you; sent in the user agent",
        free=True, first="run worker retry",
    )  # fmt: skip
    connections: int = option(
        256, "concurrent connections in each scraper", least=1, most=4096, free=True,
        first="worker",
    )  # fmt: skip
    per_host: int = option(
        8, "concurrent connections to one registered domain (example.co.uk)", least=1, most=256,
        free=True,
    )  # fmt: skip
    per_second: float = option(
        20, "requests per second to one registered domain; 0 = as fast as it answers", least=0,
        most=10_000, free=True,
    )  # fmt: skip
    per_domain: int = option(
        10_000, "most links to one registered domain in a shard; 0 = all", least=0, most=10_000_000
    )
    max_failures: int = option(
        10, "consecutive failures after which a domain is skipped; 0 = never skip", least=0,
        most=10_000, free=True,
    )  # fmt: skip
    skipped_domains: tuple[str, ...] = option(
        (), "domains to skip; a run adds those that never answered", free=True
    )
    connect_timeout: float = option(
        10, "seconds to wait for a connection", least=0.1, most=600, free=True
    )
    read_timeout: float = option(10, "seconds to wait for data", least=0.1, most=600, free=True)
    total_timeout: float = option(
        30, "seconds to spend on one image", least=0.1, most=3600, free=True
    )
    offline_minutes: float = option(
        60, "minutes without network after which a shard is returned, to be scraped again later",
        least=0, most=10_080, free=True,
    )  # fmt: skip
    max_redirects: int = option(5, "redirects to follow", least=0, most=20)
    max_bytes: int = option(
        20_000_000, "most bytes in a file", least=1000, most=1_000_000_000, topic="image"
    )
    min_bytes: int = option(
        5000, "fewest bytes in a file", least=0, most=100_000_000, topic="image"
    )
    min_side: int = option(
        64, "fewest pixels on the shorter side", least=1, most=10_000, topic="image"
    )
    max_pixels: int = option(
        64_000_000, "most pixels in an image, checked before it is decoded", least=1000,
        most=1_000_000_000, topic="image",
    )  # fmt: skip
    max_aspect: float = option(
        8, "highest ratio of the longer to the shorter side", least=1, most=1000, topic="image"
    )
    resize: int = option(
        0, "re-encode images, those with a larger side smaller; 0 = keep originals", least=0,
        most=4096, topic="image",
    )  # fmt: skip
    resize_mode: str = option(
        "shorter",
        "what --resize bounds: the shorter or the longer side, or a square made by cropping or by "
        "a white border; nothing is enlarged",
        choices=("shorter", "longer", "crop", "border"), topic="image",
    )  # fmt: skip
    resize_format: str = option(
        "jpg", "format of images re-encoded by --resize", choices=("jpg", "webp", "png"),
        topic="image",
    )  # fmt: skip
    resize_quality: int = option(
        95, "their quality, as JPEG or WebP", least=1, most=100, topic="image"
    )
    thumbs: int | None = option(
        None, "side of the small pictures that scrapers make for the model, which spares the GPU's "
        "machine the decoding; by default the preset's with a swarm or a cluster, else 0 = none",
        least=0, most=1024, free=True, topic="judge",
    )  # fmt: skip
    known_harm: tuple[str, ...] = option(
        (), "files of hashes (hex md5, sha1 or sha256) of images that must never be kept",
        file=True, grows=True, topic="image",
    )  # fmt: skip
    consent: str = option(
        "strict",
        "which opt-outs to honour; strict: all machine-readable ones, robots.txt and tdmrep.json "
        "included; headers: those sent with a page or an image; research: robots.txt only; the "
        "others are recorded",
        choices=("strict", "headers", "research"),
    )
    outcomes: bool = option(
        True, "store what became of each link: its reason, status and scores", free=True,
        topic="output",
    )  # fmt: skip
    replay: str = option("", "fetch every image from this HOST:PORT, which replays a recorded web")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Checked):
    """The settings of the dataset: its place, its formats, and its duplicates."""

    # free: a folder can have several names, all valid for its dataset; URLs are compared
    output: str = option(
        "dataset", "folder of the dataset, or a URL that fsspec supports (s3://…, gdrive://…)",
        free=True, first="run worker gpu up swarm",
    )  # fmt: skip
    forms: tuple[str, ...] = option(
        ("images", "embeddings"),
        "what to write beside the metadata, separated by commas; images:jpg converts all images "
        "to JPEG",
        choices=("images", "images:jpg", "embeddings", "tfrecords"),
    )
    duplicates: str = option(
        "keep",
        "what to do with images the run already has: keep them, as LAION-400M did, or drop those "
        "with the same bytes, or those that look nearly the same",
        choices=("keep", "same", "near"),
    )
    distance: int = option(
        4, "for --duplicates near: how many bits of 64 may differ", least=0, most=8
    )
    keep_local: bool = option(True, "with a URL: keep the local copy as well", free=True)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not self.output.strip():
            raise ConfigError("output: give a folder or a URL.")
        if {"images", "images:jpg"} <= {*self.forms}:
            raise ConfigError("forms: choose images or images:jpg, not both.")

    @property
    def url(self) -> str | None:
        """Return the URL that finished shards are uploaded to; None for a local dataset."""
        scheme, mark, rest = self.output.strip().partition("://")
        return f"{scheme.lower()}://{rest.rstrip('/')}" if mark else None

    @property
    def folder(self) -> Path:
        """Return the local folder: the output, or for a URL one named after its last part."""
        # no shell expands what is in .env or in the form; an unknown user's ~ stays as it is
        named = PurePosixPath(self.output).name if self.url else os.path.expanduser(self.output)
        return Path(named).absolute()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Checked):
    """One run: the settings that decide what its dataset holds, and how it is made."""

    nickname: str = option(
        "", "your name on leaderboards and in the dataset card", free=True, topic="tracker",
        first="worker gpu",
    )  # fmt: skip
    crawl: Crawl = field(default_factory=Crawl)
    download: Download = field(default_factory=Download)
    judge: Judge = field(default_factory=Judge)
    output: Output = field(default_factory=Output)
    place: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.judge.no_judge and self.place.tracker:
            raise ConfigError("no_judge: a tracker's pairs are scored; leave out one of the two.")
        if self.crawl.text_column == NO_TEXT and not self.judge.no_judge:
            raise ConfigError(
                "text_column: links without captions cannot be judged; give --no-judge as well."
            )

    @property
    def forms(self) -> tuple[str, ...]:
        """The formats that are written beside the metadata: without a model, no embeddings."""
        none = {"embeddings"} if self.judge.no_judge else set[str]()
        return tuple(form for form in self.output.forms if form not in none)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Job:
        """Return a Job from flat values by field name; strings are parsed by `Setting.parse`.

        Raise ConfigError for an unknown name, and for a value that a field rejects.
        """
        values = rename_former(values)
        require_known_settings(values)
        known = {setting.name: setting for setting in settings()}
        groups: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            setting = known[name]
            if isinstance(value, str):
                value = setting.parse(value)
            elif isinstance(value, list):
                value = tuple(value)
            groups.setdefault(setting.group, {})[name] = value
        types = _types()
        own = groups.pop("", {})
        return cls(**own, **{group: types[group](**given) for group, given in groups.items()})

    @classmethod
    def stored(cls, path: Path) -> Job | None:
        """Return the Job whose `values` a JSON file holds, or None if there is no file.

        Raise DamagedJob for a damaged file.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop(_SUM, None) not in (None, json_checksum(values)):
                raise ValueError("its checksum does not match")
            return cls.from_values(rename_former(values, warn=False))
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError, TypeError) as error:
            raise DamagedJob(
                f"{path} is damaged; delete it, then give the same settings again."
            ) from error

    def values(self) -> dict[str, Any]:
        """Return all settings, flat, in JSON's types; the inverse of `from_values`."""
        return {
            setting.name: list(value) if isinstance(value, tuple) else value
            for setting in settings()
            if (value := setting.of(self)) is not None
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that decide the dataset's content, files by their checksums."""
        return fingerprint(settings(), self)

    def require_same(self, differences: Mapping[str, str], place: object) -> None:
        """Raise ConfigError, naming the differences, if a place holds another job's dataset."""
        if differences:
            raise ConfigError(
                f"output: {place} holds a dataset made with other settings; choose another folder, "
                f"or use the same settings: {'; '.join(differences.values())}."
            )

    def store(self, path: Path) -> None:
        """Write the file that `stored` reads, atomically."""
        values = self.values()
        values[_SUM] = json_checksum(values)  # a flipped bit could turn one setting into another
        write_file(path, json.dumps(values, indent=2) + "\n")

    def differences(self, other: Job) -> dict[str, str]:
        """Return the settings that make this Job's dataset another than the other's, with both."""
        # files are read only where the values differ: a model may have gigabytes
        apart = [
            each for each in settings() if not each.option.free and each.of(self) != each.of(other)
        ]
        there, asked = (fingerprint(apart, job) for job in (other, self))
        found = setting_differences(settings(), there, asked)
        if self.output.url != other.output.url:
            # not the URL itself, which may hold a password
            found["output"] = "output " + (
                "to the URL that it was uploaded to"
                if other.output.url
                else "to a folder, not a URL"
            )
        return found


@cache
def settings() -> tuple[Setting, ...]:
    """Return every setting of a Job, in the order of the fields."""
    own = settings_of(Job, "")
    return own + tuple(s for name, part in _types().items() for s in settings_of(part, name))


@cache
def _types() -> dict[str, Any]:
    """Return the types of a Job's fields."""
    return get_type_hints(Job)


def require_known_settings(names: Iterable[str]) -> None:
    """Raise ConfigError for an unknown name."""
    known = {*FORMER_NAMES, *(setting.name for setting in settings())}
    for name in names:
        if name not in known:
            raise ConfigError(f"{name} is not a setting; see `cah run --help-all`.")


def rename_former(values: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """Return values by the settings' present names, which take precedence over former ones."""
    former = [name for name in FORMER_NAMES if name in values]
    for name in former if warn else ():
        _log.warning("%s is now called %s; use the new name.", name, FORMER_NAMES[name])
    renamed = {FORMER_NAMES[name]: values[name] for name in former}
    return renamed | {name: each for name, each in values.items() if name not in former}


def replace_settings(job: Job, **values: Any) -> Job:
    """Return a Job with some settings replaced, by their flat names."""
    return Job.from_values({**job.values(), **values})

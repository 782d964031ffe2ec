"""A dataset with failed links, and its retries."""

import dataclasses
from hashlib import md5

import pyarrow.parquet as pq

from cahlib.core.config import replace_settings
from cahlib.core.retry_shards import TEMPORARY_REASONS
from cahlib.crawl.blocklists import Blocklists
from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifests
from cahlib.dataset.outcomes import read_outcomes
from cahlib.demo.web import Answer
from cahlib.run.dataset_job import dataset_job
from cahlib.run.retry import retry_links
from cahlib.run.retry_plan import plan_retry
from tests.world import small

TEMPORARY = tuple(each.value for each in TEMPORARY_REASONS)
LATER = 2**40  # seconds since 1970


class Flaky(small.Pictures):
    """A web on which a share of the links, always the same ones, fails."""

    failing = 0  #: per cent
    pictures = {}  #: of some links, in place of the one that all others have

    def is_failing(self, url):
        return int(md5(url.encode()).hexdigest()[:8], 16) % 100 < self.failing

    def answer(self, request):
        answer = super().answer(request)
        if answer.status != 200 or not self.is_failing(request.url):
            data = self.pictures.get(request.url)
            return Answer(body=data, type="image/jpeg") if data else answer
        return Answer(status=503) if "-0-" in request.url else Answer(raw=True)


def job(made, folder, web, **settings):
    """The run of which the datasets are; no model judges."""
    own = small.job(made / "crawl" / "*.warc.wat.gz", folder, web)
    return replace_settings(own, no_judge=True, model="", threshold=None, safety="", **settings)


def retry(place, only=TEMPORARY, before=LATER, *, stop=None, scraping=small.scraping, **settings):
    job = dataset_job(str(place), settings, {"CAH_CONTACT": "tests@example.org"})
    plan = plan_retry(job, only, before=before, blocked=Blocklists.load(job.crawl))
    return retry_links(job, plan, stop=stop, scraping=scraping)


def rows(folder):
    """The rows of a dataset's metadata, by uid."""
    found = pq.read_table(folder / "metadata").to_pylist()
    assert len({row["uid"] for row in found}) == len(found)
    return {row["uid"]: row for row in found}


def outcomes(folder):
    """The reasons of each link, by uid, in the order of its attempts."""
    found = {}
    for manifest in read_manifests(folder):
        for batch in read_outcomes(folder, manifest, ["uid", "reason"]):
            for row in batch.to_pylist():
                found.setdefault(row["uid"], []).append(row["reason"])
    return found


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and len(path.relative_to(folder).parts) == 2
        and path.relative_to(folder).parts[0] != "run"
        and path.name not in ("nshards.txt", "sizes.json")
    }


def without_outcomes(folder):
    for manifest in list(read_manifests(folder)):
        files = {p: each for p, each in manifest.files.items() if not p.startswith("outcomes/")}
        told = dataclasses.replace(manifest, files=files)
        (folder / manifest_path(manifest.shard.id)).write_bytes(encode_manifest(told))
        yield manifest.shard.id


def outcome_rows(folder):
    return [row for path in folder.glob("outcomes/*") for row in pq.read_table(path).to_pylist()]


def named(folder):
    """The links that the outcomes of a dataset name."""
    return {row["url"] for row in outcome_rows(folder) if row["url"]}

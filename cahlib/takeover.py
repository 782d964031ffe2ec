"""Shards that are at the output's URL already: a machine that is gone brought them there.

So a new notebook runtime, whose disk is empty, goes on where the last one was lost.
"""

from __future__ import annotations

from cahlib.config import Job
from cahlib.curate import dataset, seal, sink, upload
from cahlib.curate.model_source import find_source
from cahlib.curate.seal import Sealed
from cahlib.errors import ConfigError
from cahlib.tracker.store import Ledger


def take_over(job: Job, ledger: Ledger) -> int:
    """Enter the shards at the job's URL as done, those that the ledger has excepted; how many.

    Their seals come here and say where the files are. A shard that did not arrive whole is to do
    again, and is overwritten there. Raises ConfigError if another job made them.
    """
    if not job.output.url:
        return 0
    folder, model, number = job.output.folder, find_source(job.judge).name, 0
    known = {shard.id for shard in ledger.in_state("sealed", "done")}
    for sealed in upload.elsewhere(job.output.url, known):
        _same(job, model, sealed)
        (folder / seal.FOLDER).mkdir(parents=True, exist_ok=True)
        sink.replace(folder / seal.name(sealed.shard.id), seal.packed(sealed))
        ledger.add([sealed.shard])
        uids = [uid for uid in dataset.uids(folder, sealed) if not ledger.seen(uid)]
        ledger.seal(sealed.shard, uids, sealed.tally)
        ledger.done(sealed.shard)
        number += 1
    return number


def _same(job: Job, model: str, sealed: Sealed) -> None:
    """Refuse what a job with other settings made, as far as a seal tells them."""
    made = (sealed.model, sealed.threshold, sealed.forms)
    if made != (model, job.judge.chosen()[2], job.output.forms):
        raise ConfigError(
            f"output: {sealed.place} holds the dataset of a job with another model, threshold or "
            "forms; choose another URL, or repeat that job's settings."
        )

"""The candidates that a dataset dropped, where its outcomes were kept: read a shard at a time.

How many each shard dropped for each reason is in its manifest, so that a page of them needs only
the outcomes of the shards that it shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.manifest import ShardManifest, has_outcomes
from cahlib.dataset.outcomes import read_outcomes

#: What is shown of a candidate.
_SHOWN = ("reason", "url", "text", "page", "status", "similarity", "nsfw", "language")

#: Shards whose candidates of one reason are kept in memory: some MB each.
_KEPT = 8


class DroppedCandidates:
    """The dropped candidates of the shards that have outcomes, by reason. Thread-safe."""

    def __init__(self, manifests: Sequence[ShardManifest], place: str) -> None:
        self._place = place
        self._shards = [each for each in manifests if has_outcomes(each)]
        self._read = lru_cache(_KEPT)(self._of_shard)

    def reasons(self) -> list[tuple[str, str, int]]:
        """Return each reason, its phrase and how many were dropped for it, the most first."""
        counts = Counter[DropReason]()
        for each in self._shards:
            counts.update(each.stats.dropped)
        return [
            (reason.value, reason.phrase, count)
            for reason, count in counts.most_common()
            if count and reason.stage in (Stage.FETCH, Stage.JUDGE)
        ]

    def page(self, reason: str, start: int, count: int) -> dict[str, Any]:
        """Return some candidates that were dropped for a reason, in the order of the shards."""
        known = {each.value: each for each in DropReason}
        if reason not in known:
            raise ConfigError(f"reason: {reason:.80} is not the name of a drop reason.")
        total, items = 0, list[dict[str, Any]]()
        for number, each in enumerate(self._shards):
            here = each.stats.dropped.get(known[reason], 0)
            low, high = max(start - total, 0), min(start + count - total, here)
            if low < high:
                items += self._read(number, reason).slice(low, high - low).to_pylist()
            total += here
        return {"total": total, "items": items}

    def _of_shard(self, number: int, reason: str) -> pa.Table:
        """Return the candidates of a shard that were dropped for a reason."""
        manifest = self._shards[number]
        try:
            batches = [
                batch.filter(pc.equal(batch["reason"], reason))
                for batch in read_outcomes(self._place, manifest, _SHOWN)
            ]
            return pa.Table.from_batches(batches) if batches else pa.table({})
        except (OSError, ValueError) as error:
            raise RunError(
                f"The outcomes of {manifest.shard.id} cannot be read ({error}); see `cah verify`."
            ) from error

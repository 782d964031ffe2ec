"""Repositories at Hugging Face (hf://), where files are uploaded in few, large commits.

fsspec makes each file a commit of its own, and the hub allows 128 per hour. Here many files are one
commit, which is applied as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cahlib.core.errors import ConfigError
from cahlib.dataset.storage.files import DatasetFiles, storage_errors

#: What is uploaded: a file of this machine, or its content.
LocalContent: TypeAlias = Path | bytes

#: Seconds between two commits of a run: 30 per hour, so that several runs fit into the hub's 128.
COMMIT_INTERVAL = 120.0

#: Paths per request.
_ASKED = 500


def find_repository(there: DatasetFiles) -> HubRepository | None:
    """Return the repository that a place is in, or None if it is in none."""
    protocols = {there.fs.protocol} if isinstance(there.fs.protocol, str) else {*there.fs.protocol}
    # the hub's buckets have no commits
    return (
        None if "hf" not in protocols or there.root.startswith("buckets/") else HubRepository(there)
    )


@dataclass(frozen=True, slots=True)
class HubRepository:
    """The part of a repository below a place, by relative paths; raises as `Files` does."""

    there: DatasetFiles

    def check(self, path: str) -> None:
        """Raise if a file could not be committed; the hub is asked, without a commit."""
        from huggingface_hub import CommitOperationAdd

        with storage_errors(self.there.place):
            try:
                api, which, inner = self._resolved()
            except FileNotFoundError as error:
                raise ConfigError(
                    f"output: there is no {self.there.place}, or not for your token; create the "
                    "repository at https://huggingface.co/new-dataset, or type: hf auth login."
                ) from error
            trial = CommitOperationAdd(path_in_repo=inner + path, path_or_fileobj=b"trial")
            api.preupload_lfs_files(additions=[trial], **which)

    def commit(
        self, files: Mapping[str, LocalContent], removed: Collection[str], *, message: str
    ) -> None:
        """Upload files and remove others in one commit, unless nothing would change."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()  # cahlib shows its own
        with storage_errors(self.there.place):
            api, which, inner = self._resolved()
            operations: list[Any] = [CommitOperationDelete(inner + each) for each in removed]
            operations += [
                CommitOperationAdd(
                    path_in_repo=inner + path,
                    path_or_fileobj=local if isinstance(local, bytes) else str(local),
                )
                for path, local in files.items()
            ]
            if operations:
                api.create_commit(operations=operations, commit_message=message, **which)
            self.there.fs.invalidate_cache()
            if missing := self.different(files):
                raise OSError(f"{missing[0]} did not arrive intact")

    def different(self, files: Mapping[str, LocalContent]) -> Sequence[str]:
        """Return which of these files are missing there or differ from here."""
        return [p for p, known in self._known([*files]).items() if not _same(known, files[p])]

    def there_of(self, paths: Sequence[str]) -> Sequence[str]:
        """Return which of these paths exist there."""
        return [path for path, known in self._known(paths).items() if known]

    def _known(self, paths: Sequence[str]) -> Mapping[str, Any]:
        """Return the hub's record of each file, None if it does not exist there."""
        found = dict.fromkeys(paths)
        with storage_errors(self.there.place):
            api, which, inner = self._resolved()
            for start in range(0, len(paths), _ASKED):
                asked = [inner + path for path in paths[start : start + _ASKED]]
                for each in api.get_paths_info(paths=asked, **which):
                    found[each.path.removeprefix(inner)] = each
        return found

    def _resolved(self) -> tuple[Any, dict[str, str], str]:
        """Return the hub's API, its arguments for the repository, and the prefix of paths in it."""
        from huggingface_hub import HfApi

        fs = self.there.fs
        at = fs.resolve_path(self.there.root)
        which = {"repo_id": at.repo_id, "repo_type": at.repo_type, "revision": at.revision}
        inner = f"{at.path_in_repo}/" if at.path_in_repo else ""
        return HfApi(endpoint=fs.endpoint, token=fs.token), which, inner


def _same(known: Any, local: LocalContent) -> bool:
    """Return whether the hub's file equals that here; small ones are compared by git's hash."""
    size = len(local) if isinstance(local, bytes) else local.stat().st_size
    if known is None or known.size != size:
        return False
    lfs = getattr(known, "lfs", None)
    digest = hashlib.sha256() if lfs else hashlib.sha1(f"blob {known.size}\0".encode())
    for data in _pieces(local):
        digest.update(data)
    return bool(digest.hexdigest() == (lfs.sha256 if lfs else known.blob_id))


def _pieces(local: LocalContent) -> Iterator[bytes]:
    with io.BytesIO(local) if isinstance(local, bytes) else local.open("rb") as file:
        while data := file.read(1 << 20):
            yield data

"""The run directory: where a run keeps its job, ledger, parcels and status, beside its dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: Its name in the folder of the dataset.
RUN_DIRECTORY = "run"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths in the run directory of a dataset; without a folder, relative to the dataset."""

    dataset: Path = Path()

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self.dataset / RUN_DIRECTORY

    @property
    def lock(self) -> Path:
        """The file that a process locks while it writes to the dataset."""
        return self.path / "lock"

    @property
    def job(self) -> Path:
        """The settings of the run."""
        return self.path / "job.json"

    @property
    def ledger(self) -> Path:
        """The database of the run's shards."""
        return self.path / "ledger.sqlite"

    def ledger_files(self) -> list[Path]:
        """Return the ledger and the files that SQLite keeps beside it."""
        return [*self.path.glob(f"{self.ledger.name}*")]

    @property
    def tracker(self) -> Path:
        """What a tracker's worker keeps between launches."""
        return self.path / "tracker.json"

    @property
    def status(self) -> Path:
        """The status of the run, rewritten about once per second."""
        return self.path / "live.json"

    @property
    def parcels(self) -> Path:
        """The folder of the parcels that wait to be judged."""
        return self.path / "parcels"

    @property
    def slices(self) -> Path:
        """The folder of the rows of tables that are being scraped."""
        return self.path / "links"

    @property
    def swarm(self) -> Path:
        """The folder of the swarm: its name, costs and logs."""
        return self.path / "swarm"

    @property
    def kaggle(self) -> Path:
        """The last session on Kaggle."""
        return self.path / "kaggle.json"

    @property
    def session(self) -> Path:
        """The session elsewhere that the folder belongs to, if any."""
        return self.path / "session"

    @property
    def elsewhere(self) -> Path:
        """Ids of shards whose files are on another machine, one per line.

        A session elsewhere was given only their manifests.
        """
        return self.path / "elsewhere"


def in_dataset(path: Path) -> str:
    """Return a path of `RunDirectory()` as archives and URLs spell it."""
    return str(PurePosixPath(path))

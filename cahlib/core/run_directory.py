"""The run directory: where a run keeps its job, ledger, parcels and status, beside its dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahlib.core.secret_store import run_name_file

#: Its name in the folder of the dataset.
_NAME = "run"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths in the run directory of a dataset; without its folder, relative to it."""

    dataset: Path = Path()

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self.dataset / _NAME

    def holds(self, path: Path) -> bool:
        """Return whether a path is in the directory, or is the directory itself."""
        return path.is_relative_to(self.path)

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
        """The state that a tracker's worker keeps between launches."""
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
    def swarm_name(self) -> Path:
        """The name by which clouds know the run's servers; written before the first is created."""
        return run_name_file(self.swarm)

    @property
    def marks(self) -> Path:
        """The pairs that were marked while browsing."""
        return self.path / "marks.txt"

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

"""The pairs that somebody has marked, in a file that `cah purge` and `cah select` read."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from cahlib.core.atomic import write_file
from cahlib.core.errors import CahError
from cahlib.core.lists import MD5, read_entries

_HEAD = "# uids of marked pairs, for `cah purge DATASET --uids` and `cah select DATASET --marks`\n"


class Marks:
    """The uids of marked pairs, kept in a file after each change. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read the file, if it exists; raise ConfigError if it is not a list of uids."""
        self.path = path
        self.fault = ""  #: why the last change could not be written, a sentence
        self._lock = threading.Lock()
        self._uids = dict.fromkeys(
            each.lower()
            for each in (read_entries(str(path), "marks", MD5) if path.exists() else ())
        )

    def __contains__(self, uid: str) -> bool:
        return uid in self._uids

    def __len__(self) -> int:
        return len(self._uids)

    def uids(self) -> list[str]:
        """Return the uids in the order in which they were marked."""
        with self._lock:
            return [*self._uids]

    def change(self, uids: Iterable[str], *, marked: bool) -> None:
        """Mark pairs, or take their marks away; one that cannot be written is kept in memory."""
        with self._lock:
            for uid in uids:
                if marked:
                    self._uids[uid] = None
                else:
                    self._uids.pop(uid, None)
            try:
                write_file(self.path, self.text())
                self.fault = ""
            except CahError as error:
                self.fault = f"The marks are not stored: {error} Download them before you leave."

    def text(self) -> str:
        """Return the marks as the file has them."""
        return _HEAD + "".join(f"{uid}\n" for uid in self._uids)

"""A lock file that names its holder, and is free as soon as the holder is gone."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import Self

_POLL = 0.01  # seconds


class PidLock:
    """An exclusive lock on `path`, held by every process that has inherited this open file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+")

    def fileno(self) -> int:
        """Give the file descriptor, for a child that is to hold the lock, too."""
        return self._file.fileno()

    def take(self, *, within: float = 0.0) -> bool:
        """Try for `within` seconds to get the lock; tell whether it is held now."""
        deadline = time.monotonic() + within
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL)
            else:
                return True

    def name(self, pid: int) -> None:
        """Write down who holds the lock; only the one that holds it may."""
        self._file.truncate(0)
        self._file.write(f"{pid}\n")
        self._file.flush()

    def holder(self) -> int | None:
        """Read who was named last; None if nobody ever was."""
        self._file.seek(0)
        text = self._file.read().strip()
        return int(text) if text.isdigit() else None

    def close(self) -> None:
        """Close the file here; the lock is free when nobody else has it open. Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

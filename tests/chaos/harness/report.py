"""One table: what was done, what was seen, what must not have been."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_SHOWN = 20  # violations


class Report:
    """Rows and violations of one run; `logs` is where the processes' logs go if it fails."""

    def __init__(self, title: str, *, logs: Path | None = None) -> None:
        self.title = title
        self.rows: list[tuple[str, str]] = []
        self.violations: list[str] = []
        self.missed: list[str] = []  # names of figures beyond their bounds
        self._logs = logs

    def row(self, name: str, value: str) -> None:
        self.rows.append((name, value))

    def count(self, what: str, counts: Counter[str]) -> None:
        for name, count in counts.most_common():
            self.row(f"{what} {name}", str(count))

    def figure(self, name: str, value: str, bound: str, *, within: bool) -> None:
        """A latency or a rate: shown with its bound, no violation, as machines differ."""
        self.row(name, f"{value} (bound {bound}{'' if within else ', NOT MET'})")
        if not within:
            self.missed.append(name)

    def violate(self, found: Iterable[str]) -> None:
        self.violations += found

    def keep_logs(self, directory: Path) -> None:
        """Copy the logs before their directory goes, if there is something to look into."""
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
            for log in [*directory.glob("*.log"), *directory.glob("*.journal")]:
                shutil.copy(log, self._logs)

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [self.title, *(f"  {name:<{width}}  {value}" for name, value in self.rows)]
        lines.append(f"  {'violations':<{width}}  {len(self.violations)}")
        lines += [f"    ! {each}" for each in self.violations[:_SHOWN]]
        return "\n".join(lines)

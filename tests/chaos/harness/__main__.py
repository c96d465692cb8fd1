"""python -m harness [PART …]: hurt a cluster, check it, print one table; `make chaos` runs all."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import click
from harness import can_fail, failover, overload, readers, rolling, soak, storm
from harness.cluster import Size
from harness.faults import FAULTS
from harness.report import Report

_STORM_REQUESTS = 2000
_SOAK_REQUESTS = 6000
_DEFAULT_HEARTBEAT = 15.0
_DEFAULT_PAUSE = 5.0  # seconds between two faults, some of which last for 27


class _Parts:
    """What can be run, with the options of this run."""

    def __init__(
        self,
        *,
        requests: int | None,
        faults: int,
        seconds: float,
        seed: int,
        heartbeat: float,
        kind: str,
    ) -> None:
        self._requests = requests
        self._faults = faults
        self._seconds = seconds
        self._seed = seed
        self._heartbeat = heartbeat
        self._kinds = [fault for fault in FAULTS if kind in fault.name]

    async def storm(self, report: Report) -> None:
        pause = self._seconds / self._faults
        requests = self._requests or _STORM_REQUESTS
        await storm.run(self._storm(requests, self._faults, pause, self._heartbeat), report)

    async def defaults(self, report: Report) -> None:
        """A short storm with the heartbeat timeout that users have: each fault once."""
        faults = len(self._kinds)
        await storm.run(self._storm(200, faults, _DEFAULT_PAUSE, _DEFAULT_HEARTBEAT), report)

    def _storm(self, requests: int, faults: int, pause: float, heartbeat: float) -> storm.Storm:
        return storm.Storm(
            requests=requests,
            faults=faults,
            pause=pause,
            seed=self._seed,
            kinds=self._kinds,
            # Time for three lost workers and a Redis that hangs for 20 s.
            size=Size(heartbeat=heartbeat, seed=self._seed, request_timeout=60 + 4 * heartbeat),
        )

    async def failover(self, report: Report) -> None:
        await failover.run(report, times=8, seed=self._seed, heartbeat=self._heartbeat)

    async def rolling(self, report: Report) -> None:
        await rolling.run(report, seed=self._seed)

    async def overload(self, report: Report) -> None:
        await overload.run(report, seconds=20, seed=self._seed)

    async def readers(self, report: Report) -> None:
        await readers.run(report, seed=self._seed)

    async def soak(self, report: Report) -> None:
        await soak.run(report, requests=self._requests or _SOAK_REQUESTS, seed=self._seed)

    async def can_fail(self, report: Report) -> None:
        await can_fail.run(report, seed=self._seed)


def run_part(run: Callable[[Report], Awaitable[None]], report: Report) -> None:
    """Run one part to its end, or to where it broke off: that is a violation like any other."""
    began = time.monotonic()

    async def whole() -> None:
        await run(report)

    try:
        asyncio.run(whole())
    except Exception as error:  # noqa: BLE001 - the other parts, and what was seen so far, matter too
        traceback.print_exception(error)
        report.violate([f"broke off: {_innermost(error)!r}"])
    report.row("seconds", f"{time.monotonic() - began:.0f}")


def _innermost(error: Exception) -> Exception:
    """What a group of tasks ended with first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


PARTS = ("failover", "rolling", "overload", "readers", "storm", "defaults", "soak")


@click.command()
@click.argument("parts", nargs=-1)
@click.option(
    "--requests",
    type=int,
    help=f"In the storm, at least; in the soak.  [default: {_STORM_REQUESTS}; {_SOAK_REQUESTS}]",
)
@click.option("--faults", default=60, show_default=True, help="In the storm, at least.")
@click.option("--seconds", default=100.0, show_default=True, help="Over which the faults come.")
@click.option("--seed", type=int, help="Of requests and faults.  [default: drawn]")
@click.option("--heartbeat", default=2.0, show_default=True, help="The heartbeat timeout.")
@click.option("--kind", default="", help="Only faults whose name contains this.")
@click.option("--strict", is_flag=True, help="A bound that is not met fails, too.")
@click.option("--logs", type=click.Path(path_type=Path), help="Where the processes' logs go.")
def main(
    parts: tuple[str, ...], seed: int | None, logs: Path | None, *, strict: bool, **options
) -> None:
    """Run PARTS: failover, rolling, overload, readers, storm, defaults, soak; can_fail.

    Without PARTS, all before the semicolon.
    """
    seed = seed if seed is not None else int(time.time()) % 100_000
    chosen = _Parts(seed=seed, **options)
    failed = False
    for part in parts or PARTS:
        report = Report(f"{part}, seed {seed}", logs=logs and logs / part)
        run_part(getattr(chosen, part), report)
        click.echo(f"{report}\n")
        failed = failed or bool(report.violations) or (strict and bool(report.missed))
    sys.exit(failed)


if __name__ == "__main__":
    main()

"""The bars: what is to be reached, what was measured, met or missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tables import Report, Results, growth, median, per_request, per_token, table


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar and what was measured."""

    what: str
    bar: str
    seen: str
    short: float  # by which share of the bar it is missed; below 0: what there is to spare

    def __str__(self) -> str:
        """Met or missed, and by how much."""
        if self.short <= 0:
            return f"{self.seen}: met, {-self.short:.0%} to spare"
        return f"{self.seen}: **missed by {self.short:.0%}**"


def _at_most(what: str, value: float, bar: float, unit: str) -> Bar:
    return Bar(what, f"≤ {bar:g} {unit}".strip(), f"{value:.2f}", value / bar - 1)


def _at_least(what: str, value: float, bar: float, unit: str) -> Bar:
    return Bar(what, f"≥ {bar:,.10g} {unit}".strip(), f"{value:,.2f}", 1 - value / bar)


class _Pair:
    """QueueServe and the bare server in one scenario."""

    def __init__(self, results: Results, scenario: str) -> None:
        chains = results["scenarios"].get(scenario, {})
        self.ours: list[Report] = chains.get("queueserve", [])
        self.bare: list[Report] = chains.get("bare", [])
        self.there = bool(self.ours and self.bare)

    def of(self, value: Callable[[Report], float]) -> float:
        return median(self.ours, value)

    def added(self, kind: str, cut: str) -> float:
        return self.of(lambda r: r[kind][cut]) - median(self.bare, lambda r: r[kind][cut])


def _scenario_bars(results: Results) -> Iterator[Bar]:
    if (one := _Pair(results, "S1")).there:
        yield _at_most("S1 added first token, p50", one.added("ttft_ms", "p50"), 1.5, "ms")
        yield _at_most("S1 added whole answer, p50", one.added("whole_ms", "p50"), 2, "ms")
        yield _at_most("S1 added whole answer, p99", one.added("whole_ms", "p99"), 6, "ms")
        trips = one.of(lambda r: (r["redis"]["reads"] - r["redis"]["publish"]) / r["requests"])
        yield _at_most("S1 Redis round trips a request, without publishes", trips, 6, "")
    if (two := _Pair(results, "S2")).there:
        rate = two.of(lambda r: r["tokens_per_s"])
        yield _at_least("S2 tokens/s, one API server", rate, 50_000, "/s")
        if theirs := results["scenarios"]["S2"].get("fastchat"):
            times = rate / median(theirs, lambda r: r["tokens_per_s"])
            yield _at_least("S2 tokens/s against FastChat", times, 20, "x")
    if (three := _Pair(results, "S3")).there:
        cost = three.of(per_token)
        yield _at_most("S3 CPU a token, chain", cost, 28, "µs")
        for peer, bar in (("smg", 1.0), ("vllm-router", 1.0), ("fastchat", 0.05)):
            if theirs := results["scenarios"]["S3"].get(peer):
                ratio = cost / median(theirs, per_token)
                yield _at_most(f"S3 CPU a token against {peer}'s chain", ratio, bar, "x")
        share = three.of(lambda r: r["tokens_per_s"])
        share /= median(three.bare, lambda r: r["tokens_per_s"])
        yield _at_least("S3 tokens/s against the bare server", share, 0.99, "")
        yield _at_most("S3 gap p99", three.of(lambda r: r["gap_ms"]["p99"]), 25, "ms")
        yield _at_most("S3 added first token, p50", three.added("ttft_ms", "p50"), 5, "ms")
    if (four := _Pair(results, "S4")).there:
        yield _at_least(
            "S4 requests/s, one API server", four.of(lambda r: r["requests_per_s"]), 1000, "/s"
        )
        yield _at_most("S4 CPU a request, chain", four.of(per_request), 1000, "µs")


def _other_bars(results: Results) -> Iterator[Bar]:
    for key, names in (
        ("depths", ("submit_us", "dispatch_us")),
        ("pools", ("submit_us", "finish_us")),
    ):
        if rows := results.get(key):
            sizes = [str(f"{next(iter(row.values())):,}") for row in (rows[0], rows[-1])]
            for name in names:
                what = f"{name.removesuffix('_us')}: {sizes[-1]} {next(iter(rows[0]))}"
                yield _at_most(f"{what} against {sizes[0]}", growth(rows, name), 1.3, "x")
    if idle := results.get("idle"):
        yield _at_most("idle: 1 API server, 10 workers", idle["commands_per_s"], 20, "commands/s")
    if out := results.get("scale_out"):
        ratio = out["us_with_two"] / out["us_with_one"]
        yield _at_most("CPU a request, two API servers against one", ratio, 1.1, "x")
    if streams := results.get("open_streams"):
        what = f"{streams['streams']:,} open streams, each"
        yield _at_most(what, streams["kb_per_stream"], 45, "kB")
    if steady := results.get("steady"):
        ratio = steady["mb_after_all"] / steady["mb_after_a_tenth"]
        yield _at_most(f"memory over {steady['requests']:,} requests", ratio, 1.1, "x")


def bars_table(runs: Sequence[Results]) -> str:
    """All bars for which there are results, with a column for each run."""
    columns = [[*_scenario_bars(results), *_other_bars(results)] for results in runs]
    seen = {bar.what: bar.bar for bars in columns for bar in bars}
    found = [{bar.what: str(bar) for bar in bars} for bars in columns]
    rows = [[what, bar, *(one.get(what, "-") for one in found)] for what, bar in seen.items()]
    return table(["what", "bar", *(results["date"] for results in runs)], rows)

"""The bars: what is to be reached, what was measured, met or missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from scenarios import SCENARIOS
from tables import Report, Results, growth, median, per_request, per_token, table

Chains: TypeAlias = dict[str, list[Report]]  # of one scenario, by name


_SMALL = 1  # below it two digits behind the point say too little
_ONE_PERCENT = 0.01
_ONE_EACH = "1 API server, 1 worker, 1 token a step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar and what was measured."""

    what: str
    setting: str  # processes beside Redis, tokens a step
    control: str  # in the same run; "": the number stands alone
    goal: str  # with its unit, and the stretch
    seen: str
    short: float  # by which share of the bar it is missed; below 0: what there is to spare
    stretched: bool  # the stretch is met, too

    def __str__(self) -> str:
        """Met or missed, and by how much."""
        if self.short <= 0:
            further = ", the stretch too" if self.stretched else ""
            return f"{self.seen}: met{further}, {_percent(-self.short)} to spare"
        return f"{self.seen}: **missed by {_percent(self.short)}**"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= _ONE_PERCENT else f"{share:.2%}"


def _bar(
    what: str,
    value: float,
    bar: float,
    unit: str = "",
    *,
    at_least: bool,
    stretch: float | None = None,
    control: str = "",
    beside: float | None = None,
    setting: str = _ONE_EACH,
) -> Bar:
    """At most `bar`, or `at_least`; `beside` is what the control has."""

    def short_of(goal: float) -> float:
        return 1 - value / goal if at_least else value / goal - 1

    further = "" if stretch is None else f" (stretch {stretch:,.10g})"
    return Bar(
        what=what,
        setting=setting,
        control=control,
        goal=f"{'≥' if at_least else '≤'} {bar:,.10g} {unit}".strip() + further,
        seen=_seen(value, beside),
        short=short_of(bar),
        stretched=stretch is not None and short_of(stretch) <= 0,
    )


_at_most = partial(_bar, at_least=False)
_at_least = partial(_bar, at_least=True)


def _seen(value: float, beside: float | None) -> str:
    """Return the figure, and the control's where it is not part of it."""
    digits = 2 if value >= _SMALL else 3
    shown = f"{value:,.{digits}f}"
    return shown if beside is None else f"{shown} (control {beside:,.{digits}f})"


class _Pair:
    """QueueServe and the bare server in one scenario."""

    def __init__(self, results: Results, scenario: str) -> None:
        chains = results["scenarios"].get(scenario, {})
        self.ours: list[Report] = chains.get("queueserve", [])
        self.bare: list[Report] = chains.get("bare", [])
        self.there = bool(self.ours and self.bare)

    def of(self, value: Callable[[Report], float]) -> float:
        return median(self.ours, value)

    def of_bare(self, value: Callable[[Report], float]) -> float:
        return median(self.bare, value)

    def added(self, kind: str, cut: str) -> float:
        return self.of(lambda r: r[kind][cut]) - self.of_bare(lambda r: r[kind][cut])


def _scenario_bars(results: Results) -> Iterator[Bar]:
    for name, bars in (("S1", _s1), ("S2", _s2), ("S3", _s3), ("S4", _s4)):
        if (pair := _Pair(results, name)).there:
            yield from bars(pair, results["scenarios"][name])


def _s1(one: _Pair, _: Chains) -> Iterator[Bar]:
    first, whole = one.added("ttft_ms", "p50"), one.added("whole_ms", "p50")
    last = one.added("whole_ms", "p99")
    yield _at_most("S1 added first token, p50", first, 1.5, "ms", stretch=0.7, control="bare")
    yield _at_most("S1 added whole answer, p50", whole, 2, "ms", control="bare")
    yield _at_most("S1 added whole answer, p99", last, 6, "ms", control="bare")
    trips = one.of(lambda r: (r["redis"]["reads"] - r["redis"]["publish"]) / r["requests"])
    yield _at_most("S1 Redis round trips a request, without publishes", trips, 6)


def _s2(two: _Pair, chains: Chains) -> Iterator[Bar]:
    rate = two.of(lambda r: r["tokens_per_s"])
    bare = two.of_bare(lambda r: r["tokens_per_s"])
    yield _at_least("S2 tokens/s", rate, 50_000, "/s", stretch=80_000, control="bare", beside=bare)
    if theirs := chains.get("fastchat"):
        times = rate / median(theirs, lambda r: r["tokens_per_s"])
        yield _at_least("S2 tokens/s, times the control's", times, 20, control="fastchat")


def _s3(three: _Pair, chains: Chains) -> Iterator[Bar]:
    cost = three.of(per_token)
    yield _at_most(
        "S3 CPU a token, chain",
        cost,
        28,
        "µs",
        stretch=20,
        control="bare",
        beside=three.of_bare(per_token),
    )
    for peer, bar in (("smg", 1.0), ("vllm-router", 1.0), ("fastchat", 0.05)):
        if theirs := chains.get(peer):
            ratio = cost / median(theirs, per_token)
            what = f"S3 CPU a token, share of {peer}'s chain"
            yield _at_most(what, ratio, bar, control=peer)
    share = three.of(lambda r: r["tokens_per_s"]) / three.of_bare(lambda r: r["tokens_per_s"])
    yield _at_least("S3 tokens/s, share of the control's", share, 0.99, control="bare")
    gap, bare = (of(lambda r: r["gap_ms"]["p99"]) for of in (three.of, three.of_bare))
    yield _at_most("S3 gap p99", gap, 25, "ms", control="bare", beside=bare)
    first = three.added("ttft_ms", "p50")
    yield _at_most("S3 added first token, p50", first, 5, "ms", control="bare")
    trips = three.of(lambda r: (r["redis"]["reads"] - _steps(r)) / r["requests"])
    yield _at_most("S3 Redis round trips a request, beyond a publish a step", trips, 6)


def _steps(report: Report) -> float:
    """How many steps the engine of S3 made."""
    return float(report["tokens"] / report["tokens_per_s"] / SCENARIOS["S3"].tick)


def _s4(four: _Pair, _: Chains) -> Iterator[Bar]:
    rate = four.of(lambda r: r["requests_per_s"])
    bare = four.of_bare(lambda r: r["requests_per_s"])
    yield _at_least("S4 requests/s", rate, 1000, "/s", stretch=1500, control="bare", beside=bare)
    cost, bare = four.of(per_request), four.of_bare(per_request)
    yield _at_most("S4 CPU a request, chain", cost, 1000, "µs", control="bare", beside=bare)


def _other_bars(results: Results) -> Iterator[Bar]:
    for key, names in (
        ("depths", ("submit_us", "dispatch_us")),
        ("pools", ("submit_us", "finish_us")),
    ):
        if rows := results.get(key):
            sizes = [str(f"{next(iter(row.values())):,}") for row in (rows[0], rows[-1])]
            for name in names:
                what = f"Redis' time for a {name.removesuffix('_us')}, {next(iter(rows[0]))}"
                yield _at_most(
                    f"{what} {sizes[-1]}, times the control's",
                    growth(rows, name),
                    1.3,
                    control=sizes[0],
                    setting="no engine",
                )
    if idle := results.get("idle"):
        setting = "1 API server, 10 workers, no tokens"
        yield _at_most("idle: commands/s", idle["commands_per_s"], 20, "/s", setting=setting)
    if out := results.get("scale_out"):
        ratio = out["us_with_two"] / out["us_with_one"]
        yield _at_most(
            "CPU a request, times the control's",
            ratio,
            1.1,
            control="1 API server",
            setting="2 API servers, 1 worker, 1 token a step",
        )
    if streams := results.get("open_streams"):
        what = f"{streams['streams']:,} open streams, each"
        yield _at_most(what, streams["kb_per_stream"], 45, "kB", stretch=30)
    if steady := results.get("steady"):
        ratio = steady["mb_after_all"] / steady["mb_after_a_tenth"]
        what = "memory after 100,000 requests, times the control's"
        yield _at_most(what, ratio, 1.1, control="a tenth of them")


def bars_table(runs: Sequence[Results]) -> str:
    """All bars for which there are results, with a column for each run."""
    columns = [[*_scenario_bars(results), *_other_bars(results)] for results in runs]
    bars = {bar.what: bar for column in columns for bar in column}
    found = [{bar.what: str(bar) for bar in column} for column in columns]
    rows = [
        [what, bar.setting, bar.control or "-", bar.goal, *(one.get(what, "-") for one in found)]
        for what, bar in bars.items()
    ]
    head = ["what", "beside Redis", "control", "bar"]
    whose = [f"{results['date']}, {results['machine'].partition(',')[0]}" for results in runs]
    return table([*head, *whose], rows)

"""Writes the measured tables into docs/performance.md, and draws its plot, from two runs' results.

python bench/page.py [FILE ...]   without files: the last two of bench/results
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from bars import bars_table
from scenarios import SCENARIOS
from tables import (
    Report,
    Results,
    flat_table,
    median,
    per_token,
    process_table,
    redis_table,
    scenario_table,
)

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
PLOT = PAGE.with_suffix(".png")
_MARKED = re.compile(r"(<!-- measured: begin -->\n).*(<!-- measured: end -->)", re.DOTALL)


def tables(results: Results) -> str:
    """All tables of a run but the bars, as Markdown."""
    rounds = f"medians of {results['rounds']} rounds" if results["rounds"] > 1 else "one round"
    size = f"size x {results['quick']:g}, {results['seconds']} s"
    parts = [f"{results['date']}, {results['machine']}; {rounds}, {size}."]
    for name, why in results["left_out"].items():
        parts.append(f"Left out: {name} ({why.splitlines()[0]}).")
    for scenario in results["scenarios"]:
        parts += [f"**{scenario}: {SCENARIOS[scenario].title}**", scenario_table(results, scenario)]
    if results["scenarios"]:
        parts += ["**QueueServe's processes**", process_table(results)]
        parts += ["**What Redis was asked**", redis_table(results)]
    for key in ("depths", "pools"):
        if results.get(key):
            parts += ["**Redis' own µs a call**", flat_table(results[key])]
    return "\n\n".join(parts) + "\n"


def pooled(runs: Sequence[Results]) -> dict[str, dict[str, list[Report]]]:
    """The reports of all runs, by scenario and chain."""
    scenarios: dict[str, dict[str, list[Report]]] = {}
    for results in runs:
        for scenario, chains in results["scenarios"].items():
            for name, reports in chains.items():
                scenarios.setdefault(scenario, {}).setdefault(name, []).extend(reports)
    return scenarios


def draw(runs: Sequence[Results]) -> None:
    """CPU a token in S3 and added time to the first token in S1, by chain.

    Medians of the runs on the machine of the last one: times of two machines have no median.
    """
    import matplotlib as mpl  # noqa: PLC0415 - the extra `bench`

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    together = pooled([run for run in runs if run["machine"] == runs[-1]["machine"]])
    one, three = (together.get(name, {}) for name in ("S1", "S3"))
    cost = {name: median(reports, per_token) for name, reports in three.items()}
    base = median(one["bare"], lambda r: r["ttft_ms"]["p50"]) if "bare" in one else 0.0
    time = {
        name: median(reports, lambda r: r["ttft_ms"]["p50"]) - base
        for name, reports in one.items()
        if name != "bare"
    }
    titles = ("S3: CPU µs a token, whole chain", "S1: added ms to the first token, p50")
    for axis, values, title in zip(axes, (cost, time), titles, strict=True):
        ordered = sorted(values.items(), key=lambda item: -item[1])
        names, numbers = [name for name, _ in ordered], [value for _, value in ordered]
        colours = ["tab:orange" if name == "queueserve" else "tab:grey" for name in names]
        bars = axis.barh(names, numbers, color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=3)
        if numbers and min(numbers) > 0:
            axis.set_xscale("log")
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.2)
    figure.savefig(PLOT, dpi=110)


def main(options: argparse.Namespace) -> None:
    """Rewrite what stands between the marks; everything else is written by hand."""
    files = options.files or sorted((HERE / "results").glob("*.json"))[-2:]
    if not files:
        raise SystemExit("no results: run make bench first")
    runs = [json.loads(file.read_text()) for file in files]
    parts = ["### Bars", bars_table(runs)]
    for number, results in enumerate(runs, 1):
        parts += [f"### Run {number}", tables(results)]
    written = "\n\n".join(parts)
    text = PAGE.read_text()
    PAGE.write_text(_MARKED.sub(lambda found: f"{found[1]}\n{written}\n{found[2]}", text))
    draw(runs)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="of `make bench`, one for each run")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())

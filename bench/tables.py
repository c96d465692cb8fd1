"""Results as Markdown: what each chain did, and what each process spent."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Results = dict[str, Any]
Report = dict[str, Any]
_MIB = 2**20


def median(reports: list[Report], value: Callable[[Report], float]) -> float:
    """The median over the rounds."""
    return statistics.median(map(value, reports))


def spent(report: Report) -> float:
    """CPU seconds of the chain without the engine's own work."""
    return float(sum(report["cpu"].values()) - report["engine_cpu"])


def per_token(report: Report) -> float:
    """CPU of the chain in microseconds a token."""
    return spent(report) * 1e6 / max(1, report["tokens"])


def per_request(report: Report) -> float:
    """CPU of the chain in microseconds a request."""
    return spent(report) * 1e6 / max(1, report["requests"])


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scenario_table(results: Results, scenario: str) -> str:
    """One row per chain; added times are against the bare server of the same run."""
    chains = results["scenarios"][scenario]
    bare = chains.get("bare")
    rows = [[name, *_cells(reports, bare or reports)] for name, reports in chains.items()]
    head = ["chain", "tokens/s", "requests/s", "added first token p50 ms", "p99"]
    head += ["added whole p50 ms", "gap p99 ms", "CPU µs/token", "CPU µs/request"]
    return table([*head, "chunks/write", "memory MiB", "failed"], rows)


def _cells(reports: list[Report], bare: list[Report]) -> list[str]:
    def ms(kind: str, cut: str) -> float:
        return median(reports, lambda report: report[kind][cut])

    def added(kind: str, cut: str) -> str:
        return f"{ms(kind, cut) - median(bare, lambda report: report[kind][cut]):.2f}"

    return [
        f"{median(reports, lambda r: r['tokens_per_s']):,.0f}",
        f"{median(reports, lambda r: r['requests_per_s']):,.0f}",
        added("ttft_ms", "p50"),
        added("ttft_ms", "p99"),
        added("whole_ms", "p50"),
        f"{ms('gap_ms', 'p99'):.1f}",
        f"{median(reports, per_token):.1f}",
        f"{median(reports, per_request):,.0f}",
        f"{median(reports, lambda r: r['chunks_per_write']):.2f}",
        f"{median(reports, lambda r: sum(r['memory'].values())) / _MIB:.0f}",
        f"{sum(report['failed'] for report in reports)}",
    ]


def process_table(results: Results) -> str:
    """CPU of each process of QueueServe's chain, in microseconds a token and a request."""
    rows = []
    for scenario, chains in results["scenarios"].items():
        for report in chains.get("queueserve", [])[:1]:
            for role, seconds in report["cpu"].items():
                own = report["engine_cpu"] if role == "worker" else 0.0
                used = (seconds - own) * 1e6
                cells = [f"{used / report['tokens']:.1f}", f"{used / report['requests']:.0f}"]
                rows.append([scenario, role, *cells, f"{report['memory'][role] / _MIB:.0f}"])
            load = report["cpu_s"] * 1e6
            cells = [f"{load / report['tokens']:.1f}", f"{load / report['requests']:.0f}", ""]
            rows.append([scenario, "(load generator)", *cells])
    return table(["scenario", "process", "µs/token", "µs/request", "memory MiB"], rows)


def redis_table(results: Results) -> str:
    """What Redis was asked; a read is what came in at once, so a pipeline is one."""
    rows = []
    for scenario, chains in results["scenarios"].items():
        for report in chains.get("queueserve", [])[:1]:
            counts, requests = report["redis"], report["requests"]
            names = ("fcall", "publish", "hmget", "blmpop", "reads")
            cells = [f"{counts.get(name, 0) / requests:.2f}" for name in names]
            rows.append([scenario, *cells, f"{counts['reads'] / report['tokens']:.3f}"])
    head = ["scenario", "FCALL/request", "PUBLISH/request", "HMGET/request (inner ones too)"]
    return table([*head, "BLMPOP/request", "reads/request", "reads/token"], rows)


def flat_table(rows: list[Report]) -> str:
    """Costs in microseconds of Redis by size."""
    names = list(rows[0]) if rows else []
    return table(names, [[f"{row[name]:,.0f}" for name in names] for row in rows])


def growth(rows: list[Report], name: str) -> float:
    """How much more the last row costs than the first."""
    return float(rows[-1][name] / rows[0][name])

"""The checks with which every part begins and ends, whatever it does in between."""

from __future__ import annotations

from harness import checks
from harness.causes import explained
from harness.clients import Client
from harness.cluster import ROOT, Cluster
from harness.report import Report
from harness.rest import PROCESS_MB, Rest


async def begin(
    report: Report, cluster: Cluster, client: Client, *, growth_mb: float = PROCESS_MB
) -> Rest:
    """Remember the cluster at rest, once it has warmed up. What the client did is forgotten."""
    report.violate(await checks.settled(cluster))
    rest = Rest(cluster, growth_mb=growth_mb)
    await rest.remember()
    client.attempts.clear()
    client.outcomes.clear()
    client.waits.clear()
    return rest


async def check(report: Report, cluster: Cluster, client: Client, rest: Rest) -> None:
    """Everything that must be true in the end: settled, audit, causes, slots, TTLs, leaks."""
    report.violate(await checks.settled(cluster))
    audit = checks.audited(cluster)
    report.row("jobs accepted / ended once", f"{audit.submitted} / {audit.ended_once}")
    report.row("dispatched / orphaned", f"{audit.dispatched} / {audit.orphaned}")
    report.row("finishes refused (from zombies, or said twice)", str(audit.stale))
    report.row("dead letters", str(cluster.client.zcard(f"{ROOT}:dead")))
    report.count("job ended", audit.ends)
    report.violate(client.violations)
    report.violate(audit.violations)
    report.violate(explained(cluster, [client], audit))
    report.violate(checks.accepted(audit, client))
    report.violate(checks.redis_is_clean(cluster))
    report.violate(await checks.all_keys_have_a_ttl(cluster))
    report.violate(await checks.doors_are_closed(cluster))
    report.violate(await rest.compare())
    report.violate(found for node in cluster.nodes for found in node.unexpected)
    rest.show(report)

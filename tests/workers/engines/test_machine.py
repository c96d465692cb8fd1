"""What a process may use, read from control groups as Linux writes them: `control_groups`."""

import os

import pytest

from workers.engines import machine

MIB = 1 << 20


def sizes():
    return machine.memory() // MIB, machine.processors()


@pytest.mark.usefixtures("control_groups")
def test_without_control_groups_it_is_the_whole_machine():
    assert sizes() == (65536, 8)


@pytest.mark.usefixtures("control_groups")
def test_affinity_counts_where_there_is_such_a_thing(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5})
    assert machine.processors() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.processors() == 6


@pytest.mark.parametrize("own", [["0::/"], ["0::/system.slice/unseen"], []])
def test_in_a_container_the_root_is_its_own_group(control_groups, own):
    control_groups(own, {"memory.max": 1000 * MIB, "cpu.max": "250000 100000"})
    assert sizes() == (1000, 2)


@pytest.mark.parametrize(
    "inner, outer, seen",
    [
        ((1000 * MIB, "300000 100000"), ("max", "max 100000"), (1000, 3)),
        (("max", "max 100000"), (2000 * MIB, "400000 100000"), (2000, 4)),
        ((3000 * MIB, "100000 50000"), (2000 * MIB, "900000 100000"), (2000, 2)),
        (("max", "max 100000"), ("max", "max 100000"), (65536, 8)),
        ((1 << 50, "10000000 100000"), ("max", "50000 100000"), (65536, 1)),
    ],
)
def test_the_least_of_nested_groups_counts(control_groups, inner, outer, seen):
    files = {"top/cgroup.procs": ""}
    for where, (memory, quota) in {"top/mid/own": inner, "top": outer}.items():
        files |= {f"{where}/memory.max": memory, f"{where}/cpu.max": quota}
    control_groups(["0::/top/mid/own"], files)
    assert sizes() == seen


def test_the_groups_of_others_do_not_count(control_groups):
    files = {"other/memory.max": MIB, "top/own/inner/memory.max": MIB, "own/memory.max": MIB}
    control_groups(["0::/top/own"], files | {"memory/memory.max": MIB, "top/other/cpu.max": "1 1"})
    assert sizes() == (65536, 8)


@pytest.mark.parametrize("own", ["/docker/box", "/a/name/that/the/container/does/not/see"])
def test_groups_of_the_first_version(control_groups, own):
    control_groups(
        [f"9:memory:{own}", "8:cpuset:/", f"3:cpu,cpuacct:{own}", "0::/"],
        {
            "memory/docker/memory.limit_in_bytes": 1500 * MIB,
            "memory/docker/box/memory.limit_in_bytes": 1700 * MIB,
            "memory/memory.limit_in_bytes": 1600 * MIB,
            "cpu/docker/box/cpu.cfs_quota_us": -1,
            "cpu/docker/box/cpu.cfs_period_us": 100000,
            "cpu/cpu.cfs_quota_us": 320000,
            "cpu/cpu.cfs_period_us": 100000,
        },
    )
    assert sizes() == (1500 if own == "/docker/box" else 1600, 3)


def test_a_limit_of_the_first_version_that_is_none(control_groups):
    limits = {"memory/memory.limit_in_bytes": 9223372036854771712, "cpu/cpu.cfs_quota_us": -1}
    control_groups(["2:memory:/", "1:cpu:/", "0::/"], limits | {"cpu/cpu.cfs_period_us": 100000})
    assert sizes() == (65536, 8)


def test_this_machine_has_some():
    assert machine.memory() > 64 * MIB
    assert 1 <= machine.processors() <= (os.cpu_count() or 1)

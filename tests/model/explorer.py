"""Every state that can be reached, breadth first: a violation comes with a shortest way to it."""

from __future__ import annotations

import gc
from collections import deque
from dataclasses import dataclass, field

from queue_protocol import invariant, step_invariant, steps
from queue_world import Bugs, World, ended


@dataclass(frozen=True)
class Found:
    """What an exploration has found. `trace` leads to the violation."""

    states: int
    violation: str = ""
    trace: tuple[str, ...] = ()


@dataclass
class Graph:
    """States by number, in the order in which they were found; how each was first reached."""

    numbers: dict[World, int] = field(default_factory=dict)
    first: list[tuple[int, str]] = field(default_factory=list)
    before: list[list[int]] = field(default_factory=list)

    def add(self, world: World, parent: int, action: str) -> bool:
        """Note a step to `world`; True if it is new."""
        number = self.numbers.setdefault(world, len(self.first))
        new = number == len(self.first)
        if new:
            self.first.append((parent, action))
            self.before.append([])
        self.before[number].append(parent)
        return new

    def trace(self, number: int) -> tuple[str, ...]:
        """The actions that lead to a state."""
        actions = []
        while number:
            number, action = self.first[number]
            actions.append(action)
        return tuple(reversed(actions))

    def lost(self) -> int | None:
        """The first state from which not everything can end any more."""
        good = {number for world, number in self.numbers.items() if ended(world)}
        frontier = deque(good)
        while frontier:
            new = set(self.before[frontier.popleft()]) - good
            good |= new
            frontier.extend(new)
        return next((n for n in range(len(self.first)) if n not in good), None)


def explore(start: World, bugs: Bugs) -> Found:
    """Check the invariants in all states, and that everything can still end from each of them."""
    gc.disable()  # nothing here is a cycle, and there is much to look through
    try:
        graph = Graph()
        graph.add(start, 0, "")
        return _explore(graph, start, bugs)
    finally:
        gc.enable()


def _explore(graph: Graph, start: World, bugs: Bugs) -> Found:
    frontier = deque([start])
    for number in range(10**9):
        if not frontier:
            break
        world = frontier.popleft()
        if why := invariant(world):
            return Found(len(graph.first), why, graph.trace(number))
        for action, after in steps(world, bugs):
            if why := step_invariant(world, after):
                return Found(len(graph.first), why, (*graph.trace(number), action))
            if graph.add(after, number, action):
                frontier.append(after)
    stuck = graph.lost()
    if stuck is not None:
        return Found(len(graph.first), "a job is lost: it can never end", graph.trace(stuck))
    return Found(len(graph.first))

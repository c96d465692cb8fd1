"""The requests that clients send, and what each of them must be answered.

The answers are those of an undisturbed run, taken from the same processes before anything is done
to them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

MODEL = "m"
_TOPICS = ("queues", "leases", "請用中文回答 🙂", "a café", "epochs", "slots and tokens")


@dataclass
class Ask:
    """One request; `expected` is choice → (text, finish_reason)."""

    path: str
    payload: dict[str, Any]
    expected: dict[int, tuple[str, str]] = field(default_factory=dict)
    breaks: bool = False  # it cannot be answered: it crashes its workers, or fails

    @property
    def choices(self) -> int:
        return self.payload.get("n", 1)

    @property
    def streams(self) -> bool:
        return self.payload["stream"]


def ask(prompt: str, *, chat: bool = True, **more: Any) -> Ask:
    """A request for the model of the cluster."""
    payload = {"model": MODEL, "stream": True, "ignore_eos": True, "max_tokens": 30, **more}
    if chat:
        messages = [{"role": "user", "content": prompt}]
        return Ask("/v1/chat/completions", payload | {"messages": messages})
    return Ask("/v1/completions", payload | {"prompt": prompt})


def catalogue(size: int, draw: random.Random) -> list[Ask]:
    """Requests of all kinds: greedy and seeded, n = 2, stop strings, in one piece, completions."""
    asks = []
    for number in range(size):
        more: dict[str, Any] = {"max_tokens": draw.randint(8, 48), "user": f"user-{number % 5}"}
        more |= draw.choice([{"temperature": 0}, {"temperature": 1, "seed": draw.randrange(1000)}])
        more |= {"n": 2} if number % 6 == 1 else {}
        more |= {"stream": False} if number % 5 == 2 else {}
        more |= {"stop": ["🚀", " worker", " the that"]} if number % 4 == 3 else {}
        asks.append(ask(f"{number} {draw.choice(_TOPICS)}", chat=number % 7 != 0, **more))
    return asks

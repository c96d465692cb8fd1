"""The sampling that a model's makers recommend, for requests that leave it open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from msgspec.structs import replace

from queueserve.protocol import Job, Sampling

Defaults: TypeAlias = Mapping[str, float]
"""Field of `Sampling` → value."""

_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def recommended(directory: Path) -> Defaults:
    """What the generation_config.json of a model's directory says; nothing for a greedy model.

    A file that cannot be read recommends nothing: it is not ours to judge.
    """
    try:
        config = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict) or not config.get("do_sample"):
        return {}
    found = {name: config.get(name) for name in _FIELDS}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def with_defaults(job: Job, defaults: Defaults) -> Sampling:
    """The job's sampling, with the model's defaults for what its client has not set."""
    left_open = {name: value for name, value in defaults.items() if name in job.unset}
    return replace(job.sampling, **left_open)

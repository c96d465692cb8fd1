"""The sampling that a model's makers recommend, for requests that leave it open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from msgspec.structs import replace

from queueserve.protocol import Job, Sampling

Defaults: TypeAlias = Mapping[str, float]
"""Field of `Sampling` → value."""

_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_MOST = 1_000_000  # of any of them; NaN and infinity, which Python reads in JSON, are not below


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
    found = {name: value for name in _FIELDS if _is_sound(value := config.get(name))}
    if found.get("repetition_penalty") == 0:  # scores are divided by it
        del found["repetition_penalty"]
    return {name: int(value) if name == "top_k" else value for name, value in found.items()}


def _is_sound(value: Any) -> TypeGuard[float]:
    """Whether an engine could draw with it: the batch of all would break on what is no number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= _MOST


def with_defaults(job: Job, defaults: Defaults) -> Sampling:
    """The job's sampling, with the model's defaults for what its client has not set."""
    left_open = {name: value for name, value in defaults.items() if name in job.unset}
    return replace(job.sampling, **left_open)

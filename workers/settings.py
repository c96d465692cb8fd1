"""How a worker takes part."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.defaults import Defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """A worker's settings; all times in seconds."""

    redis_url: str
    model_names: tuple[str, ...]  # the first one names the pool
    prefix: str = "qs:"
    heartbeat_timeout: float = 15.0
    grace: float = 30.0
    stall_timeout: float = 300.0  # an engine without a step for so long is stuck
    stream_interval: int = 1
    speed: float | None = None  # relative to the model's fastest worker; None: measured
    truncate: bool = False  # inputs of embeddings that are too long, where requests do not say
    chat_template: str | None = None  # a known template or a file; None: the model's own
    tool_parser: str = "auto"  # auto: read from the chat template
    reasoning_parser: str = "auto"
    model_path: str = ""  # its card may name a template where the model has none
    defaults: Defaults = field(default_factory=dict)  # sampling that requests leave open

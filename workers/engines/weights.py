"""How a model's weights are held: how exactly, and where. For engines that load checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Bits: TypeAlias = Literal[8, 4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What an operator may say; None leaves the choice to the engine."""

    dtype: str = "auto"  # or float32, bfloat16, float16
    device: str | None = None  # as torch calls it
    bits: Bits | None = None  # quantised while they are loaded, by bitsandbytes
    num_gpus: int = 1  # that share the layers
    max_gpu_memory: str | None = None  # of weights on each, as in "10GiB"; the rest is offloaded
    cpu_offloading: bool = False  # what does not fit the GPU waits in the machine's memory

    @property
    def is_offloaded(self) -> bool:
        """Whether weights may wait elsewhere than on the device that computes."""
        return self.cpu_offloading or self.max_gpu_memory is not None

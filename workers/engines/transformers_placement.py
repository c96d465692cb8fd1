"""Where the weights of a transformers model are: on which device, and what waits beside it."""

from __future__ import annotations

from typing import Any

import torch

from queueserve.errors import EngineError
from workers.engines import machine
from workers.engines.weights import Weights

_GPU_WEIGHTS = 0.7  # of what is free there; the cache needs the rest


def device_of(name: str | None) -> torch.device:
    """Return the device called `name`; None: the first GPU of CUDA's kind, else the CPU.

    Raises EngineError for one that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        module: Any = torch.get_device_module(device)  # npu: once torch_npu is installed
        there = device.type == "cpu" or module.is_available()
        count = module.device_count() if there and device.index is not None else None
    except (RuntimeError, AttributeError) as error:
        raise EngineError(f"this build of torch knows no device {name!r}: {error}") from error
    if not there:
        raise EngineError(f"--device {name}: torch finds no such device on this machine")
    if count is not None and device.index >= count:
        raise EngineError(f"--device {name}: there are {count} of this kind, counted from 0")
    return device


def check(weights: Weights) -> None:
    """Raise EngineError, before anything is converted or loaded, for a device that is not here."""
    placement(weights, device_of(weights.device))


def placement(weights: Weights, where: torch.device) -> dict[str, Any]:
    """Return the arguments of from_pretrained that say where the weights are.

    Several GPUs are `where` and those that follow it. What is offloaded is computed on a GPU all
    the same: accelerate brings it there, layer by layer, in every forward pass. Raises EngineError
    for what cannot be done on `where`.
    """
    if not weights.is_offloaded and weights.num_gpus == 1:
        return {"device_map": {"": where}}
    if where.type != "cuda":
        what = "sharing a model" if weights.num_gpus > 1 else "offloading"
        raise EngineError(f"{what} is for GPUs of CUDA's kind, not for {where.type}")
    gpus = range(where.index or 0, (where.index or 0) + weights.num_gpus)
    if gpus.stop > torch.cuda.device_count():
        raise EngineError(
            f"--num-gpus {weights.num_gpus}: there are {torch.cuda.device_count()} GPUs here"
            + (f", and the first is to be {where}" if gpus.start else "")
        )
    memory: dict[int | str, int | str] = {
        gpu: weights.max_gpu_memory or int(torch.cuda.mem_get_info(gpu)[0] * _GPU_WEIGHTS)
        for gpu in gpus
    }
    if weights.is_offloaded:
        memory["cpu"] = machine.memory()
    return {"device_map": "auto", "max_memory": memory}

"""A model whose layers are on several devices, in transformers' continuous batching.

accelerate moves the hidden states from device to device. The paged cache of transformers is one
tensor on one device, in which the pages of all layers lie side by side; here every layer has
tensors of its own, beside its weights. Blocks, tables, shared prefixes and the order of requests
stay the library's business, as do the indices: with one layer in a tensor, a block is one page.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import SLIDING_ATTENTION
from transformers.generation.continuous_batching.continuous_api import (
    SCHEDULER_MAPPING,
    ContinuousBatchProcessor,
)

Model: TypeAlias = Any  # a PreTrainedModel: transformers is not followed by mypy
Tensor: TypeAlias = Any
Layers: TypeAlias = dict[int, torch.device]  # the device that computes each layer


def layers_of(model: Model) -> Layers:
    """Where each layer's attention is computed; what is offloaded is computed on a GPU."""
    return {
        module.layer_idx: _executes_on(module, model.device)
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
    }


def is_spread(model: Model) -> bool:
    """Whether the layers are computed on more than one device."""
    return len(set(layers_of(model).values())) > 1


def _executes_on(module: Model, default: torch.device) -> torch.device:
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        return default
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def connect(model: Model) -> None:
    """Have the decoder's output come back to the first device, and arguments copied once a step.

    The manager picks the rows that it wants scores of with an index that is there. accelerate by
    itself would copy positions, masks and indices anew for every layer.
    """
    keys = model._skip_keys_device_placement  # noqa: SLF001
    home = AlignDevicesHook(io_same_device=True, skip_keys=keys)
    add_hook_to_module(model.base_model, home, append=True)
    copies = _Copies()
    for name in model.hf_device_map:
        module = model.get_submodule(name)
        device = _executes_on(module, model.device)
        if device != model.device:
            before = partial(copies.before, device)
            module.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(copies.forget, always_call=True)


class _Copies:
    """What one forward pass has copied to other devices."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def before(
        self, device: torch.device, _module: Model, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        return args, {name: self._on(device, value) for name, value in kwargs.items()}

    def _on(self, device: torch.device, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # The source is kept, too, so that no other tensor gets its id meanwhile.
            key = (id(value), device)
            if key not in self._made:
                self._made[key] = (value, value.to(device))
            return self._made[key][1]
        if type(value) in (list, tuple):
            return type(value)(self._on(device, item) for item in value)
        if type(value) is dict:
            return {name: self._on(device, item) for name, item in value.items()}
        return value

    def forget(self, *_: Any) -> None:
        self._made.clear()


class SpreadCache(PagedAttentionCache):  # type: ignore[misc]  # transformers is not followed
    """The library's cache, with the keys and values of each layer on its device."""

    def __init__(self, *, layers: Layers, **settings: Any) -> None:
        super().__init__(**settings, device="meta")  # its one tensor takes no memory there
        for allocator in self.cache_allocators.values():
            _give_tensors(allocator, layers)


def _give_tensors(allocator: Any, layers: Layers) -> None:
    page = allocator.tokens_per_page
    blocks = allocator.num_blocks + 2 * allocator.blocks_per_sector  # two sectors are never given
    shape = (blocks, page, allocator.num_key_value_heads, allocator.head_dim)
    allocator.block_physical_stride = page
    allocator.write_trash_index = page * allocator.blocks_per_sector
    for layer in allocator.layer_indices:
        pages = tuple(
            torch.zeros(shape, dtype=allocator.cache_dtype, device=layers[layer]) for _ in "kv"
        )
        allocator._kv_page_views[layer] = pages  # noqa: SLF001
        allocator._kv_token_views[layer] = tuple(part.flatten(0, 1) for part in pages)  # noqa: SLF001


def processor_of(manager: Any) -> ContinuousBatchProcessor:
    """Return what the manager would make for itself on its first use, with a cache as above."""
    model, settings = manager.model, manager.continuous_batching_config
    config = model.config.get_text_config()
    cache = SpreadCache(
        layers=layers_of(model),
        config=config,
        continuous_batching_config=settings,
        distributed_helper=manager.distributed_helper,
        dtype=model.dtype,
        model_supports_logits_to_keep=model._supports_logits_to_keep(),  # noqa: SLF001
    )
    if SLIDING_ATTENTION in cache.cache_allocators:  # no kernel takes its pages as a table
        settings.max_blocks_per_request = 0
    scheduler = SCHEDULER_MAPPING[settings.scheduler_type](
        cache=cache,
        safety_margin=settings.safety_margin,
        max_requests_per_batch=settings.max_requests_per_batch,
    )
    return ContinuousBatchProcessor(
        cache=cache,
        config=config,
        generation_config=manager.generation_config,
        continuous_batching_config=settings,
        logit_processor=manager.logit_processor,
        input_queue=manager.input_queue,
        cancel_queue=manager.cancel_queue,
        output_router=manager.output_router,
        background_thread_status=manager.background_thread_status,
        model_device=model.device,
        model_dtype=model.dtype,
        scheduler=scheduler,
        distributed_helper=manager.distributed_helper,
    )

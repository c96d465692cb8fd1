"""Devices that are not there: their tensors are in the CPU's memory, but cannot be mixed.

Within `Pretended` torch makes tensors on devices of a kind that no machine here has, computes with
them, and refuses what a GPU would refuse: an operation on tensors of two devices that is no copy.
"""

from __future__ import annotations

import functools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

KIND = "lazy"
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OnDevice(torch.Tensor):
    """A tensor that says it is on another device than its data."""

    __module__ = "torch.pretended"  # transformers knows a tensor by its type's name

    @staticmethod
    def __new__(cls, data, device):
        own = {"strides": data.stride(), "storage_offset": data.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, data.shape, dtype=data.dtype, device=device, **own
        )

    def __init__(self, data, device):
        self.data_here = data

    def tolist(self):
        return self.data_here.tolist()

    def __getitem__(self, index):
        return super().__getitem__(self._with_tensors(index))

    def __setitem__(self, index, value):
        super().__setitem__(self._with_tensors(index), value)

    def _with_tensors(self, index):
        """The index with tensors for lists, which torch would turn into some unseen here."""
        parts = index if isinstance(index, tuple) else (index,)
        parts = (torch.tensor(it).to(self.device) if isinstance(it, list) else it for it in parts)
        return tuple(parts)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Pretended():  # inference mode leaves the parts to us
            return func.decompose(*args, **kwargs)
    asked = kwargs.get("device")
    found = [part for part in tree_iter((args, kwargs)) if isinstance(part, torch.Tensor)]
    devices = {part.device for part in found if part.device.type == KIND}
    # As on a GPU, a number from the CPU may take part, and so may an index.
    if func not in COPIES and func is not torch.ops.aten.index.Tensor:
        devices |= {part.device for part in found if devices and part.dim()}
    elif func in COPIES:
        devices = {found[0].device}
    if len(devices) > 1:
        raise RuntimeError(f"{func} is given tensors on {sorted(map(str, devices))}")
    where = torch.device(asked) if asked is not None else next(iter(devices), torch.device("cpu"))
    if asked is not None and where.type == KIND:
        kwargs = kwargs | {"device": torch.device("cpu")}

    def bare(part):
        return part.data_here if isinstance(part, OnDevice) else part

    result = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    if where.type != KIND:
        return result
    return tree_map(lambda it: OnDevice(it, where) if type(it) is torch.Tensor else it, result)


class Pretended(TorchDispatchMode):
    """For one thread."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def made_here_and_moved(make):
    """What `torch.tensor` does on the device would not be seen here."""

    @functools.wraps(make)
    def tensor(*args, device=None, **kwargs):
        if device is None or torch.device(device).type != KIND:
            return make(*args, device=device, **kwargs)
        return make(*args, **kwargs).to(device)

    return tensor


def within(function):
    """Let a thread's function run with the pretended devices."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with Pretended():
            return function(*args, **kwargs)

    return wrapped

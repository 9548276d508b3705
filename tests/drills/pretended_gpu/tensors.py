"""Tensors of two kinds in one program: on the CPU real ones, on CUDA fake ones, with shape, type and device alone.

So the data path computes, the model does not, and what a device would refuse (a CPU tensor beside CUDA ones, types that
do not fit) is refused by the same rules. What a device would make the host wait for is recorded.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .record import Record

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
PLAIN = (Tensor, nn.Parameter, FakeTensor)
# Their result's size is a number on the device.
SIZED_BY_VALUES = {
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.repeat_interleave,
}
NO_LAUNCH = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,
    aten.resize_,
    aten.set_,
    aten.record_stream,
}
COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")


class PretendedTensors(TorchDispatchMode):
    """Within it, operators on CUDA compute nothing.

    Args:
        record: of what they would do.
    """

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.pinned: dict[int, StorageWeakRef] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Keep torch.compile from tracing the mode."""
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Keep the operators that a compiler calls while it traces out of the counts."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator on real tensors; take one on CUDA's apart."""
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(type(tensor) not in PLAIN for tensor in tensors):
            return NotImplemented  # DTensor and its like take themselves apart, within this mode
        there = kwargs.get("device")
        to_cuda = there is not None and torch.device(there).type == "cuda"
        if to_cuda or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return self.on_cuda(func, args, kwargs, tensors, to_cuda=to_cuda)
        return self.on_cpu(func, args, kwargs)

    def on_cpu(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator on real tensors. Pinned memory, which needs a driver, is a note beside ordinary memory."""
        if func in (aten.pin_memory.default, aten._pin_memory.default):
            return self.pin(args[0].clone())
        if func is aten.is_pinned.default:
            return self.is_pinned(args[0])
        if kwargs.pop("pin_memory", False):
            return self.pin(func(*args, **kwargs))
        return func(*args, **kwargs)

    def pin(self, tensor: Tensor) -> Tensor:
        """Note that the memory of a tensor is pinned, until it is freed."""
        storage = tensor.untyped_storage()
        self.pinned[storage.data_ptr()] = StorageWeakRef(storage)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Return whether the memory of a tensor was pinned by this mode, and is not another tensor's since."""
        noted = self.pinned.get(tensor.untyped_storage().data_ptr())
        return noted is not None and not noted.expired()

    def on_cuda(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], *, to_cuda: bool) -> Any:
        """Return what an operator would return, after a note of what it would do."""
        packet, on_host = func.overloadpacket, [t for t in tensors if not isinstance(t, FakeTensor)]
        if packet in (aten._local_scalar_dense, aten.equal):
            self.record.wait(f"{packet.__name__} reads the device")
            return _some_number(tensors[0]) if packet is aten._local_scalar_dense else True
        if packet is aten._to_copy and on_host:
            self.to_device(tensors[0])
            with self.fake:
                return torch.empty_like(tensors[0], dtype=kwargs.get("dtype"), device=CUDA)
        if packet is aten._to_copy and "device" in kwargs and kwargs["device"] is not None and not to_cuda:
            self.record.wait("copy to the host")
            return _some_values(torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype))
        if packet is aten.copy_ and on_host:
            into, source = args[:2]
            if source is on_host[0]:
                self.to_device(source)
            elif not (kwargs.get("non_blocking", args[2] if len(args) > 2 else False) and self.is_pinned(into)):
                self.record.wait("copy to the host")
                _some_values(into)
            return into
        if packet in SIZED_BY_VALUES:
            self.record.wait(f"{packet.__name__} has a size that the device knows")
        for tensor in on_host:
            if tensor.dim():  # numbers are arguments of a kernel
                self.to_device(tensor)
        self.count(func)
        with self.fake:
            product = self.typed_product(func, args, kwargs)
            return func(*args, **kwargs) if product is None else product

    def to_device(self, tensor: Tensor) -> None:
        """Note a copy that begins in memory that is not pinned."""
        self.record.launch("copy to the device")
        if not self.is_pinned(tensor):
            self.record.copy_from_pageable(f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch."))

    def count(self, func: Any) -> None:
        """Count the launch of an operator that has one."""
        if func.namespace in COLLECTIVES:
            if "tensor_autograd" not in str(func) and "wait_tensor" not in str(func):
                self.record.collective(func.overloadpacket.__name__.strip("_"))
            return
        returned = [r.alias_info for r in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if not is_view and func.namespace != "prim" and func.overloadpacket not in NO_LAUNCH:
            self.record.launch(str(func))

    @staticmethod
    def typed_product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return `out` of products for which torch 2.11 has no rule on fake tensors, after a look at their types."""
        if func is aten._scaled_mm.out:
            return kwargs["out"]
        if func is not aten.addmm.dtype_out:
            return None
        total, a, b, dtype = args[:4]
        out: Tensor = kwargs["out"]
        assert out.dtype == dtype == total.dtype, (out.dtype, dtype, total.dtype)
        assert a.dtype == b.dtype, (a.dtype, b.dtype)
        assert out.shape == (a.shape[0], b.shape[1]), (out.shape, a.shape, b.shape)
        return out


def _some_number(tensor: Tensor) -> float | int | bool:
    """Return a number of a tensor's type: 1 for a loss, 0 for what counts steps that were called off."""
    if tensor.dtype.is_floating_point:
        return 1.0
    return False if tensor.dtype == torch.bool else 0


def _some_values(tensor: Tensor) -> Tensor:
    """Fill a tensor of the host with such numbers."""
    return tensor.fill_(_some_number(tensor))

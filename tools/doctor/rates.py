"""Part `rates`: matrix products and copies of one device, beside what its datasheet and its bus promise."""

from collections.abc import Callable
from functools import partial

import torch

from ...trainer.estimates import peak_flops
from .examination import Examination

PINNED_COPY = 10e9  # bytes/s: half of what PCIe 4.0 x16 gives; an H100's 5.0 gives twice that


def examine(e: Examination) -> None:
    """Measure products, then copies."""
    name = torch.cuda.get_device_name(e.device) if e.on_gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    peak = peak_flops(e.config.metrics.peak_flops, e.device)
    what = f"half of the datasheet of {name}" if peak else f"no datasheet of {name} is known (metrics.peak_flops)"
    e.at_least("matrix product", product_flops(e) / 1e12, peak / 2e12 if peak else None, "TFLOP/s", what)
    size = 2**30 if e.on_gpu else 2**26
    here = torch.ones(size // 4, device=e.device)
    there = torch.empty_like(here)
    moved = 2 * size / e.seconds(lambda: there.copy_(here)) / 1e9  # read and written
    bandwidth = memory_bandwidth(e)
    what = "60 % of the memory's clock x width" if bandwidth else "nothing is known of this memory"
    e.at_least("copy in memory", moved, bandwidth and 0.6 * bandwidth / 1e9, "GB/s", what)
    if not e.on_gpu:
        e.find("host to device, device to host", "not here", compared_with="no GPU is here")
        return
    pinned = torch.ones(size // 16, pin_memory=True)
    on_device = here[: len(pinned)]
    for direction, to, of in (("host to device", on_device, pinned), ("device to host", pinned, on_device)):
        seconds = e.seconds(partial(to.copy_, of, non_blocking=True))
        e.at_least(direction, pinned.nbytes / seconds / 1e9, PINNED_COPY / 1e9, "GB/s", "half of PCIe 4.0 x16; pinned memory")


def product_size(e: Examination) -> int:
    """Return the width of the square matrices."""
    return 8192 if e.on_gpu else 512


def product(e: Examination) -> Callable[[], object]:
    """Return a product of square matrices: bfloat16 on a GPU, float32 on a CPU; 10 at once, for a CPU's clock."""
    size, dtype = product_size(e), torch.bfloat16 if e.on_gpu else torch.float32
    a, b = (torch.randn(size, size, device=e.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(10):
            torch.mm(a, b, out=out)

    return multiply


def product_flops(e: Examination) -> float:
    """Return the FLOP/s of matrix products."""
    return 10 * 2 * product_size(e) ** 3 / e.seconds(product(e), repeats=3)


def memory_bandwidth(e: Examination) -> float | None:
    """Return bytes/s of a GPU's memory: two transfers a clock of its bus; None where the driver does not say."""
    if not e.on_gpu:
        return None
    properties = torch.cuda.get_device_properties(e.device)
    return 2 * 1000 * properties.memory_clock_rate * properties.memory_bus_width / 8 or None

"""Memory: whether an error says that it ran out, and what this process and its machine have of it."""

import errno
import os
import re
from pathlib import Path
from typing import Literal

import torch

# what torch, its kernels' libraries and the system say where they do not raise a type of their own
RAN_OUT = re.compile(r"out of memory|can(no|')t allocate memory|alloc_failed|unable to allocate", re.IGNORECASE)
OF_DEVICE = re.compile(r"cuda|cublas|cudnn|nccl|triton|\bhip", re.IGNORECASE)
SIZE = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)
GIB = 2**30
# where control groups limit memory: of version 2, and of version 1
LIMITS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}


def ran_out(error: BaseException) -> Literal["device", "host"] | None:
    """Return whose memory an error says has run out; None where it says something else."""
    if isinstance(error, torch.OutOfMemoryError):
        return "device"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "host"
    if isinstance(error, RuntimeError) and RAN_OUT.search(str(error)):
        return "device" if OF_DEVICE.search(str(error)) else "host"
    return None


def request(error: BaseException) -> str:
    """Return what could not be allocated, in the words of the allocator."""
    if found := SIZE.search(str(error)):
        return f"tried to allocate {found[1]}"
    return (str(error) or type(error).__name__).split("\n")[0]


def device_figures(device: torch.device) -> list[tuple[str, str]]:
    """Return rows of a table: GiB that torch's allocator has of a GPU, and what others leave of it."""
    free, total = torch.cuda.mem_get_info(device)
    held, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    peak, others = torch.cuda.max_memory_allocated(device), total - free - reserved
    return [
        ("allocated", f"{held / GIB:.3f}, {peak / GIB:.3f} at the peak"),
        ("reserved", f"{reserved / GIB:.3f}, of which {(reserved - held) / GIB:.3f} are not allocated"),
        ("the device", f"{total / GIB:.3f}, of which {free / GIB:.3f} are free; others have {others / GIB:.3f}"),
    ]


def host_figures() -> list[tuple[str, str]]:
    """Return rows of a table: GiB that this process has of its machine, as far as the system tells."""
    rows = []
    if (resident := _bytes("/proc/self/status", "VmRSS")) is not None:
        rows.append(("this process", f"{resident / GIB:.3f} resident"))
    if (size := host_memory()) is not None:
        available = _bytes("/proc/meminfo", "MemAvailable")
        rest = "" if available is None else f", of which {available / GIB:.3f} are available on the machine"
        rows.append(("the host", f"{size / GIB:.3f}{rest}"))
    return rows


def host_memory() -> int | None:
    """Return the bytes that processes may have here: those of the machine, or of a control group; None: not known."""
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (ValueError, OSError):
        return None
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controller, path = line.split(":", 2)
        if controller in LIMITS:
            root, file = LIMITS[controller]
            group = Path(root, path.lstrip("/"))
            limits = [folder / file for folder in (group, *group.parents) if (folder / file).is_file()]
            texts = [limit.read_text().strip() for limit in limits]
            sizes += [int(text) for text in texts if text.isdecimal()]  # "max": none
    return min(sizes)


def private_memory() -> int | None:
    """Return the bytes that this process has for itself, libraries and mapped files left out; None: not known."""
    return _bytes("/proc/self/smaps_rollup", "Private_Dirty")


def _bytes(file: str, field: str) -> int | None:
    """Return the bytes that a line `field: n kB` of a file of /proc states; None where there is none."""
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)

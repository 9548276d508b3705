"""How a process joins the others: device, process group, what all must have alike, mesh, time limits."""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh

from ..config import JobConfig
from ..errors import ConfigError
from .agreement import compare_settings
from .layout import Layout, launch_number, world_size
from .meeting import meet
from .signals import end_with_launcher
from .world import World

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def pick_device() -> torch.device:
    """Return this process's GPU by torchrun's LOCAL_RANK where CUDA is there, else the CPU. Raises ConfigError."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, devices = launch_number("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(f"process {local} of this machine has no GPU: it has {devices}; start at most as many (NGPU)")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def device_remarks(device: torch.device) -> list[str]:
    """Return why a run is on the CPU of a machine that seems to have something faster."""
    if device.type != "cpu":
        return []
    remarks = []
    if torch.backends.mps.is_available():
        remarks.append(
            "trains on the CPU: this Mac's GPU (MPS) is not used, as neither FSDP2 nor the attention and loss kernels "
            "were ever tried on one"
        )
    if NVIDIA_DRIVER.exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        remarks.append(
            f"warning: trains on the CPU: an NVIDIA driver is here, but torch {torch.__version__}, {built}, finds no GPU that "
            "it can use; see nvidia-smi, CUDA_VISIBLE_DEVICES and pytorch.org/get-started"
        )
    return remarks


def symmetric_memory_complaints(config: JobConfig, device: torch.device) -> list[str]:
    """Return why async tensor parallelism cannot run here: the device cannot read the memory of its neighbours."""
    if not config.parallelism.enable_async_tensor_parallel:
        return []
    what = "parallelism.enable_async_tensor_parallel = true: needs GPUs with symmetric memory"
    if device.type != "cuda":
        return [f"{what}, the device is {device.type!r}; leave it out"]
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    unreachable = [index for index in others if not torch.cuda.can_device_access_peer(device, index)]
    return [f"{what}, but {device} cannot read that of GPU(s) {unreachable}; leave it out"] if unreachable else []


def join(
    config: JobConfig, store: Any = None, further: Callable[[], Mapping[str, str]] = dict, stop: Callable[[], bool] = bool
) -> World:
    """Join the process group (a group of one without torchrun), compare with the other ranks, and lay the mesh.

    Args:
        config: of the job.
        store: in which ranks find each other's addresses; None: the launcher's.
        further: returns what else all ranks must have alike, see `compare_settings`; not called where there is one.
        stop: polled until all ranks have met.

    Raises:
        ConfigError: when `[parallelism]` does not fit the number of processes or the devices.
        MeetingError: other ranks did not come in time, or a stop was requested before they did.
        RanksDifferError: ranks do not run the same job; on all of them.
    """
    layout = Layout.resolve(config, world_size())
    device = pick_device()
    enable_flight_recorder(config)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=config.comm.timeout_seconds)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher()
        if "WORLD_SIZE" in os.environ:
            if store is None:
                store, rank, ranks = meet(timeout, stop, device=device.type, torch=torch.__version__)
            else:
                rank, ranks = launch_number("RANK"), world_size()
            dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=ranks)
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]  # public, but re-exported implicitly
            dist.init_process_group(backend, timeout=timeout, store=store, rank=0, world_size=1)
    if layout.world_size > 1:
        compare_settings(config, further())
    shape = (layout.replicate, layout.shard, layout.cp, layout.tp)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard", "cp", "tp"))
    if layout.cp > 1:
        mesh["shard", "cp"]._flatten("shard_cp")  # the mesh remembers it by this name
    if layout.tp > 1:  # so that the norm of all gradients is one sum over ranks, not one for each dimension
        mesh["shard", "cp", "tp"]._flatten("sharded")
    limit_collectives(config)
    return World(rank=dist.get_rank(), layout=layout, device=device, mesh=mesh)


def limit_collectives(config: JobConfig) -> None:
    """Give all process groups `comm.timeout_seconds`: those of a mesh have their backend's 10 or 30 minutes."""
    for group in list(distributed_c10d._world.pg_map):  # `torch.distributed.set_timeout` is not in torch 2.13
        distributed_c10d._set_pg_timeout(timedelta(seconds=config.comm.timeout_seconds), group)


def enable_flight_recorder(config: JobConfig) -> None:
    """Have NCCL's process groups remember their last collectives, and write them down when one times out.

    They read these variables when they are made. What is set already stays, so that the environment can say otherwise.
    A dump needs error handling that leaves the communicator alone (3), torch's own default. The folder is made when
    training begins; `torchfrtrace` reads the files.
    """
    c = config.comm
    if not c.trace_buf_size:
        return
    folder = Path(config.job.dump_folder) / c.save_traces_folder
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", str(c.trace_buf_size)),
        ("TORCH_FR_DUMP_TEMP_FILE", str(folder.resolve() / "rank_")),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3"),
    ):
        os.environ.setdefault(name, value)

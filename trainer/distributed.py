"""Processes and the device mesh: how many ranks there are, what each one is, and what they must agree on.

The mesh has the dimensions (replicate, shard, cp, tp). Ranks that differ only in cp or tp see the same rows, cp ranks different
tokens of them; replicate x shard is the data-parallel degree. Parameters are sharded over shard x cp. Whatever every rank must
know before a step (how many targets, has anyone been told to stop, has anyone failed) travels through one small CPU all-reduce,
so that no GPU is ever synchronised for it.
"""

import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from .config import ConfigError, JobConfig
from .failures import USER_ERRORS
from .profiling import check_profiling, enable_flight_recorder
from .signals import end_with_launcher
from .storage import CheckpointError

# torch 2.13's own FSDP2 takes the flattened dimension of shard x cp out of the mesh in the way that it warns of.
warnings.filterwarnings("ignore", message="Slicing a flattened dim", category=UserWarning)

POLL_SECONDS = 0.02

T = TypeVar("T")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism; their product is the number of processes."""

    replicate: int
    shard: int
    cp: int
    tp: int

    def __str__(self) -> str:
        """As arithmetic."""
        return f"replicate {self.replicate} x shard {self.shard} x context {self.cp} x tensor {self.tp} = {self.world_size}"

    @property
    def data_parallel(self) -> int:
        """Ranks with rows of their own."""
        return self.replicate * self.shard

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.data_parallel * self.cp * self.tp

    @property
    def sequence(self) -> str:
        """The keys that split the sequence, as a complaint names them."""
        return f"parallelism.context_parallel_degree {self.cp} x parallelism.tensor_parallel_degree {self.tp}"

    @property
    def gradient_ranks(self) -> int:
        """Ranks whose tokens differ: FSDP2 averages gradients over so many."""
        return self.data_parallel * self.cp

    @classmethod
    def resolve(cls, config: JobConfig, world_size: int | None = None) -> "Layout":
        """Fit `[parallelism]` to `world_size` processes (None: to as many as the degrees name).

        Raises:
            ConfigError: with the arithmetic, when the degrees do not multiply to the world size.
        """
        p = config.parallelism
        if world_size is not None and world_size < 1:
            raise ConfigError(f"{world_size} processes: there must be at least 1")
        replicate, cp, tp = p.data_parallel_replicate_degree, p.context_parallel_degree, p.tensor_parallel_degree
        shard = p.data_parallel_shard_degree
        if shard == 0 or shard < -1:
            raise ConfigError(f"parallelism.data_parallel_shard_degree = {shard}: must be -1 (all that are left) or >= 1")
        if shard == -1:
            shard = 1 if world_size is None else max(1, world_size // (replicate * cp * tp))
        layout = cls(replicate=replicate, shard=shard, cp=cp, tp=tp)
        if world_size is not None and layout.world_size != world_size:
            raise ConfigError(
                f"parallelism: {layout}, but {world_size} process(es) were started; "
                "change the degrees or the number of processes"
            )
        return layout


class Task(Generic[T]):
    """Work in a thread of its own, so that a rank whose disk is slow still answers the others.

    Args:
        work: what is to be done.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self.result: T | OSError | CheckpointError
        self.work = work
        self.thread = threading.Thread(target=self.run, name="cistron-files", daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Body of the thread."""
        try:
            self.result = self.work()
        except (OSError, CheckpointError) as e:
            self.result = e
        except BaseException as e:  # a bug, or a store's own way to complain
            traceback.print_exc()
            self.result = OSError(f"{type(e).__name__}: {e}")

    def done(self) -> bool:
        """Whether there is an outcome."""
        return not self.thread.is_alive()

    def outcome(self) -> T | OSError | CheckpointError:
        """What the work returned, or the exception in which it ended, once it has."""
        self.thread.join()
        return self.result


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int
    layout: Layout
    device: torch.device
    mesh: DeviceMesh

    @property
    def is_first(self) -> bool:
        """The rank that talks to people."""
        return self.rank == 0

    @property
    def dp_rank(self) -> int:
        """Which rows of a step are this rank's."""
        return self.mesh.get_local_rank("replicate") * self.layout.shard + self.mesh.get_local_rank("shard")

    @property
    def tp_rank(self) -> int:
        """0 for exactly one of the ranks that share the same tokens."""
        return self.mesh.get_local_rank("tp")

    @property
    def counts_rows(self) -> bool:
        """True for exactly one of the ranks that share the same rows."""
        return self.mesh.get_local_rank("cp") == self.tp_rank == 0

    @property
    def data_mesh(self) -> DeviceMesh:
        """The mesh that FSDP2 shards (and, in two dimensions, replicates) over."""
        shard = "shard_cp" if self.layout.cp > 1 else "shard"
        return self.mesh["replicate", shard] if self.layout.replicate > 1 else self.mesh[shard]

    def sum(self, values: list[Number]) -> list[Number]:
        """Element-wise sum over all ranks, through CPU memory: of integers, which wrap at 2^63, or of floats, in float64."""
        total = torch.tensor(values, dtype=torch.float64 if isinstance(values[0], float) else torch.int64)
        dist.all_reduce(total)
        return cast("list[Number]", total.tolist())

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. For small plain objects."""
        values = [value] * self.layout.world_size
        dist.all_gather_object(values, value)
        return values

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Return once `done()` holds on all ranks. One may wait for its disk for longer than a collective may take."""
        while self.sum([int(done())])[0] < self.layout.world_size:
            time.sleep(POLL_SECONDS)

    def beside(self, work: Callable[[], T]) -> list[T]:
        """Every rank's result of work that a disk may slow down. Raises one rank's OSError or CheckpointError on all."""
        task = Task(work)
        self.wait_for(task.done)
        results = self.gather(task.outcome())
        for result in results:
            if isinstance(result, (OSError, CheckpointError)):
                raise result
        return cast("list[T]", results)

    def together(self, step: Callable[[], T]) -> T:
        """Do on every rank what any may fail at; the first rank's error is raised on all. Raises one of USER_ERRORS."""
        result, error = None, None
        try:
            result = step()
        except USER_ERRORS as e:
            error = e
        self.agree(error)
        return cast(T, result)

    def agree(self, error: Exception | None) -> None:
        """Raise the first rank's error on all ranks, if any rank has one, so that none waits for a rank that has left."""
        first = next((e for e in self.gather(error) if e is not None), None)
        if first is not None:
            raise first


def world_size() -> int:
    """Processes that the launcher started: torchrun's WORLD_SIZE, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device() -> torch.device:
    """This process's GPU by torchrun's LOCAL_RANK where CUDA is there, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(f"process {local} of this machine has no GPU: it has {devices}; start at most as many (NGPU)")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def check_symmetric_memory(config: JobConfig, device: torch.device) -> None:
    """Refuse async tensor parallelism where a device cannot read the memory of its neighbours. Raises ConfigError."""
    if not config.parallelism.enable_async_tensor_parallel:
        return
    what = "parallelism.enable_async_tensor_parallel = true: needs GPUs with symmetric memory"
    if device.type != "cuda":
        raise ConfigError(f"{what}, the device is {device.type!r}; leave it out")
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    unreachable = [index for index in others if not torch.cuda.can_device_access_peer(device, index)]
    if unreachable:
        raise ConfigError(f"{what}, but {device} cannot read that of GPU(s) {unreachable}; leave it out")


def join(config: JobConfig) -> World:
    """Join the process group (a group of one without torchrun) and lay the mesh.

    Raises:
        ConfigError: when `[parallelism]` does not fit the number of processes or the devices.
    """
    layout = Layout.resolve(config, world_size())
    device = pick_device()
    check_symmetric_memory(config, device)
    check_profiling(config, device)
    enable_flight_recorder(config)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=config.comm.timeout_seconds)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher()
        if "WORLD_SIZE" in os.environ:
            store, rank, ranks = launcher_store(timeout)
            dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=ranks)
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]  # public, but re-exported implicitly
            dist.init_process_group(backend, timeout=timeout, store=store, rank=0, world_size=1)
    shape = (layout.replicate, layout.shard, layout.cp, layout.tp)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard", "cp", "tp"))
    if layout.cp > 1:
        mesh["shard", "cp"]._flatten("shard_cp")  # the mesh remembers it by this name
    if layout.tp > 1:  # so that the norm of all gradients is one sum over ranks, not one for each dimension
        mesh["shard", "cp", "tp"]._flatten("sharded")
    limit_collectives(config)
    return World(rank=dist.get_rank(), layout=layout, device=device, mesh=mesh)


def launcher_store(timeout: timedelta) -> tuple[Any, int, int]:
    """Where ranks leave their addresses for each other, this rank, and their number.

    torchrun keeps one store over the lives of its ranks, in which those of `--max-restarts` would find the addresses of the
    dead (github.com/pytorch/pytorch/issues/135712). On one machine its count of restarts tells lives apart; machines may differ
    in theirs, and need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which makes a new store for each life.
    """
    store, rank, ranks = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        life = os.environ["TORCHELASTIC_RESTART_COUNT"]
        store = dist.PrefixStore(f"life {life}", store)  # type: ignore[attr-defined]  # public, as above
    return store, rank, ranks


def limit_collectives(config: JobConfig) -> None:
    """Give all process groups there are `comm.timeout_seconds`: those of a mesh have their backend's 10 or 30 minutes."""
    for group in list(distributed_c10d._world.pg_map):  # `torch.distributed.set_timeout` is not in torch 2.13
        distributed_c10d._set_pg_timeout(timedelta(seconds=config.comm.timeout_seconds), group)

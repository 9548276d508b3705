"""What single steps did: torch.profiler's traces, snapshots of CUDA's allocator, and NCCL's flight recorder."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ..config import JobConfig

# Each cycle's events are written before the next one begins.
warnings.filterwarnings("ignore", message=".*Profiler clears events", category=UserWarning)
WARMUP_STEPS = 3  # traced and thrown away: the tracer's own start would stand in the first step
SNAPSHOT_EVENTS = 100_000  # allocations and frees that a snapshot goes back to
StepHook = Callable[[int], None]


def profiling_complaints(config: JobConfig, device: torch.device) -> list[str]:
    """Return what `[profiling]` and `[comm]` need and the device does not have, a line for each key."""
    if device.type == "cuda":
        return []
    needs, buffer = "needs CUDA, and this run is on the CPU; leave it out", config.comm.trace_buf_size
    complaints = []
    if config.profiling.enable_memory_snapshot:
        complaints.append(f"profiling.enable_memory_snapshot = true: {needs}")
    if buffer:
        complaints.append(f"comm.trace_buf_size = {buffer}: the flight recorder is NCCL's, which {needs}")
    return complaints


@contextmanager
def profiling(config: JobConfig, rank: int, device: torch.device) -> Iterator[StepHook]:
    """Profile a loop as `[profiling]` says; the loop calls what is returned after each step, with the step's number."""
    p, folder = config.profiling, Path(config.job.dump_folder)
    if config.comm.trace_buf_size:
        (folder / config.comm.save_traces_folder).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        hooks: list[StepHook] = []
        if p.enable_profiling:
            hooks.append(stack.enter_context(traces(folder / p.save_traces_folder, p.profile_freq, rank, device)))
        if p.enable_memory_snapshot:
            hooks.append(stack.enter_context(snapshots(folder / p.save_memory_snapshot_folder, p.profile_freq, rank)))

        def after_step(step: int) -> None:
            for hook in hooks:
                hook(step)

        yield after_step


@contextmanager
def traces(folder: Path, freq: int, rank: int, device: torch.device) -> Iterator[StepHook]:
    """Record every `freq`-th step from here on into `folder`/step-<N>/rank<R>.json.gz.

    From the end of a step to the end of the next: a save or validation after the step before stands in it too.
    """
    at: int | None = None

    def write(profiler: profile) -> None:
        if at is None:  # the loop has ended, in the middle of a recording
            return
        path = folder / f"step-{at}" / f"rank{rank}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))

    warmup = min(WARMUP_STEPS, freq - 1)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    plan = schedule(wait=freq - 1 - warmup, warmup=warmup, active=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True) as profiler:

        def after_step(step: int) -> None:
            nonlocal at
            at = step
            profiler.step()
            at = None

        yield after_step


@contextmanager
def snapshots(folder: Path, freq: int, rank: int) -> Iterator[StepHook]:
    """Record allocations; write `folder`/step-<N>/rank<R>.pickle every `freq` steps and where memory runs out."""
    step = 0

    def write(place: str) -> None:
        path = folder / place / f"rank{rank}.pickle"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))

    def after_step(number: int) -> None:
        nonlocal step
        step = number
        if step % freq == 0:
            write(f"step-{step}")

    torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS)
    try:
        yield after_step
    except torch.OutOfMemoryError:
        write(f"step-{step + 1}-out-of-memory")
        raise
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)

"""Memory that runs out ends a run with one message: where it happened, what holds it, and what would take less."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from ..base import aligned
from .build import attention_of
from .config import JobConfig
from .errors import OutOfMemoryError
from .estimates import JobOnDevice, estimate, host_estimate, peak_of, reliefs
from .processes import (
    FIRST_SPEAKS_SECONDS,
    Layout,
    World,
    device_figures,
    first_may_speak,
    host_figures,
    ran_out,
    request,
    speak,
)
from .start import verify

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.02
GIB = 2**30


@contextmanager
def out_of_memory_told(config: JobConfig, world: World, when: Callable[[], str], stop: Callable[[], bool]) -> Iterator[None]:
    """Turn what is raised where memory runs out into a message on stderr and an OutOfMemoryError.

    The rank speaks before it leaves its process group, so before the others can miss it. Mostly it is the same on all
    ranks: the first says it, and the others give it the time to end them.

    Args:
        config: of the job.
        world: this process among the others.
        when: says how far the run has come.
        stop: whether this process was told to stop, as it is when another rank has ended.

    Raises:
        OutOfMemoryError: the message.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        owner = ran_out(error)
        if owner is None:
            raise
        place = str(world.device) if owner == "device" else "the host"
        first = f"error: {when()}: out of memory of {place}: {request(error)}{origin(error.__traceback__)}"
        figures = device_figures(world.device) if owner == "device" and world.device.type == "cuda" else host_figures()
        traceback.clear_frames(error.__traceback__)  # with their tensors, so that there is memory for what follows
        message = "\n".join([first, *report(config, world, owner, figures)])
        if first_may_speak():
            until = time.monotonic() + FIRST_SPEAKS_SECONDS
            while not (stopped := stop()) and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            message = first if stopped else message
        speak(message)
        raise OutOfMemoryError(message) from None


def origin(trace: TracebackType | None) -> str:
    """Return the innermost line of this package that an error came through."""
    frames = [(Path(frame.filename).resolve(), frame) for frame in traceback.extract_tb(trace)]
    own = [(path.relative_to(ROOT), frame) for path, frame in frames if path.is_relative_to(ROOT)]
    return f", in {own[-1][1].name} ({own[-1][0]}:{own[-1][1].lineno})" if own else ""


def report(config: JobConfig, world: World, owner: str, figures: list[tuple[str, str]]) -> list[str]:
    """Return lines: the estimate of `cistron check` by parts, what is really held, and what would take less.

    Args:
        config: of the job.
        world: this process among the others.
        owner: "device", or "host": whose memory it is.
        figures: rows of what the allocator or the system says.
    """
    tokenizer, decoder = verify(config, world.layout)
    kind, gpu = world.device.type, world.device.type == "cuda" and owner == "device"

    def parts(other: JobConfig, layout: Layout) -> tuple[dict[str, float], str]:
        executor, _ = attention_of(other, world.device)
        moment = peak_of(estimate(other, decoder, layout, executor, kind))
        if gpu:
            return dict(moment.parts), moment.name
        host = host_estimate(other, decoder, tokenizer, layout, executor, kind, None)
        model = moment.parts if kind == "cpu" else {}
        return {**model, **{part: size for part, size in host.items() if part not in ("model", "programs")}}, moment.name

    held, moment = parts(config, world.layout)
    rows = [(part, f"{size / GIB:.3f}") for part, size in held.items() if size]
    at = f", at the peak ({moment})" if gpu or kind == "cpu" else ""
    lines = [f"  GiB as `cistron check` estimates them{at}"]
    lines += [f"    {line}" for line in aligned([*rows, ("sum", f"{sum(held.values()) / GIB:.3f}")])]
    lines += ["  GiB as they are"] + [f"    {line}" for line in aligned(figures)]
    job = JobOnDevice(config, decoder, world.layout, attention_of(config, world.device)[0], kind)
    less = reliefs(job, lambda *other: sum(parts(*other)[0].values()))
    if less:
        lines.append("  what takes less, by the estimate, the most effective first; each by itself")
        lines += [f"    {line}" for line in aligned([(f"-{relief.saved / GIB:.3f}", relief.change) for relief in less])]
    if gpu:
        lines.append("  much that is reserved and not allocated: PYTORCH_ALLOC_CONF=expandable_segments:True")
    return lines

"""Part `training`: some steps of the job by the real trainer: speed, shares of a step, memory, data, a checkpoint.

The run's folder is inside of the doctor's own.
"""

import sys
import time
from pathlib import Path

import torch

from ...datasets.loading import Batch
from ...trainer.config import JobConfig
from ...trainer.estimates import checkpoint_bytes, estimate
from ...trainer.processes import StopRequest, global_batch_size
from ...trainer.train import Trainer
from .examination import Examination
from .rates import product_flops
from .report import Verdict

WARM_UP, STEPS = 2, 6
MOST_SHARE = 0.05  # of a step, for what is no training
LEAST_OF_PRODUCTS = 0.3  # of the matrix rate, that a step of a GPU reaches
LOADED = 1.5  # times the tokens that training takes, so that no step waits


def examine(e: Examination) -> None:
    """Train some steps, save once, read some data."""
    config = measured_job(e)
    with StopRequest() as stop:
        if e.on_gpu:
            torch.cuda.reset_peak_memory_stats(e.device)
        before = resident()
        trainer = Trainer(config, e.world, stop)
        try:
            step_seconds, tokens_per_second = speed(e, trainer)
            memory(e, trainer, before)
            checkpoint(e, trainer, step_seconds)
            data(e, trainer, tokens_per_second)
        finally:
            trainer.close()


def measured_job(e: Examination) -> JobConfig:
    """Return the job with checkpoints and without what is not measured."""
    c = e.config
    ranks = e.world.layout.data_parallel
    rows = global_batch_size(c, e.world.layout) // ranks
    at_once = min(c.training.local_batch_size, rows)
    step_rows = min(rows, 2 * at_once) * ranks  # two micro-batches have all that more of them have
    silent = {"enable_tensorboard": False, "enable_wandb": False, "sinks": []}
    return c.model_copy(
        update={
            "job": c.job.model_copy(update={"dump_folder": str(Path(c.job.dump_folder, "run"))}),
            "training": c.training.model_copy(update={"global_batch_size": step_rows}),
            "checkpoint": c.checkpoint.model_copy(update={"enable": True, "max_failures": 1, "load_step": -1}),
            "validation": c.validation.model_copy(update={"enable": False}),
            "eval": type(c.eval)(),
            "profiling": type(c.profiling)(),
            "metrics": c.metrics.model_copy(update=silent),
        }
    )


def speed(e: Examination, trainer: Trainer) -> tuple[float, float]:
    """Take steps; add tokens/s, utilisation and shares. Returns seconds of a step, and tokens/s of all ranks."""
    log = trainer.log
    for _ in range(WARM_UP):
        step(trainer)
    e.wait()
    log.start_window()
    started = time.perf_counter()
    batch = None
    for _ in range(STEPS):
        batch = step(trainer)
    e.wait()
    log.seconds = time.perf_counter() - started
    assert batch
    rate = sum(log.sums.tokens) / log.seconds
    steps = f"{STEPS} steps after {WARM_UP}, {trainer.micro_batches} micro-batch(es) of {trainer.micro_batch_size} rows a rank"
    e.find("tokens", "ok", rate, "tokens/s", steps)
    used = log.utilisation()
    reached, products = (used["tflops"] or 0.0) * 1e12, product_flops(e)
    least = LEAST_OF_PRODUCTS if e.on_gpu else None
    e.at_least("of the matrix rate", reached / products, least, "%", f"{products / 1e12:.3g} TFLOP/s of products here")
    for key, what in (("mfu", "whole rows, as PaLM counts"), ("mfu_documents", "pairs that the mask leaves")):
        known = used[key] is not None
        against = "the datasheet's peak" if known else "metrics.peak_flops is not known"
        e.find(f"MFU, {what}", "ok" if known else "not here", used[key], "%", against)
    build = e.seconds(lambda: trainer.mask.build(batch.sequence_ids, e.device), repeats=3)
    seconds = log.seconds / STEPS
    share(e, "block mask", build * trainer.micro_batches / seconds)
    share(e, "waiting for data", log.data_seconds / log.seconds)
    return seconds, rate


def step(trainer: Trainer) -> Batch:
    """Take one optimizer step as the loop does; returns a micro-batch of it. Raises what the data raises."""
    started = time.perf_counter()
    batches, error = trainer.fetch()
    trainer.log.data_seconds += time.perf_counter() - started
    counts = trainer.step_counts(batches, error)
    assert counts, trainer.ending
    trainer.advance(batches, counts)
    trainer.log.sums = trainer.log.sums.plus(counts)
    return batches[0]


def share(e: Examination, name: str, part: float) -> None:
    """Add a share of a step: slow above `MOST_SHARE`."""
    e.find(name, "ok" if part <= MOST_SHARE else "slow", part, "%", f"at most {MOST_SHARE:.0%} of a step")


def memory(e: Examination, trainer: Trainer, before: float) -> None:
    """Compare the peak with the estimate of `cistron check`."""
    layout, executor = e.world.layout, trainer.mask.executor
    peak = max(moment.size for moment in estimate(trainer.config, trainer.decoder_config, layout, executor, e.device.type))
    estimated = f"cistron check estimates {peak / 2**30:.3g} GiB"
    if not e.on_gpu:
        grown = (resident() - before) / 2**30
        e.find("peak memory", "ok", grown, "GiB", f"{estimated}; growth of the process, with its libraries and data")
        return
    used, there = torch.cuda.max_memory_allocated(e.device), torch.cuda.get_device_properties(e.device).total_memory
    verdict: Verdict = "ok" if used <= 1.25 * peak else "wrong"
    e.find("peak memory", verdict, used / 2**30, "GiB", f"at most 1.25 x: {estimated}; {there / 2**30:.3g} GiB here")


def resident() -> float:
    """Return the largest resident set of this process so far, bytes."""
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def checkpoint(e: Examination, trainer: Trainer, step_seconds: float) -> None:
    """Save once; compare for how long training stands still with a copy of the bytes at 1 GB/s."""
    size = checkpoint_bytes(trainer.config, trainer.decoder_config)
    started = time.perf_counter()
    trainer.save()
    stall = time.perf_counter() - started
    trainer.saver.finish()
    seconds = time.perf_counter() - started
    most = 1.0 + size / e.world.layout.world_size / 1e9
    verdict: Verdict = "ok" if stall <= most or trainer.saver.waits else "slow"
    what = f"at most {most:.3g} s; {stall / step_seconds:.1f} steps; {size / 1e9:.3g} GB"
    e.find("checkpoint's stall", verdict, stall, "s", what)
    e.find("checkpoint on disk", "ok", size / seconds / 1e6, "MB/s", f"after {seconds:.3g} s")


def data(e: Examination, trainer: Trainer, tokens_per_second: float) -> None:
    """Read batches alone, and compare with what training takes of them."""
    count, started = 0, time.perf_counter()
    while count < 200 and time.perf_counter() - started < 2.0 and trainer.data.loader.next(trainer.stop):
        count += 1
    seconds = time.perf_counter() - started
    rate = count * trainer.micro_batch_size * trainer.config.training.seq_len / seconds * e.world.layout.data_parallel
    what = f"{LOADED} x what training takes, over all ranks"
    e.at_least("data loader", rate, LOADED * tokens_per_second, "tokens/s", what)

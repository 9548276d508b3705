"""Training, in the order of a run: check everything cheap, feed, build, resume, loop.

torchrun --nproc_per_node 2 -m cistron.trainer.train --config x.toml [--section.key value ...]
"""

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

if __name__ == "__main__":  # importing torch takes seconds, and Ctrl-C would print where it was
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import torch
import torch.distributed as dist
from pydantic import JsonValue

from ..base import UserError, discard_unwritten, dropped_output
from ..datasets.errors import DataEnd
from ..datasets.loading import Batch, DataShard, merge_states
from .build import contract_of, training_mask
from .checkpoints import Folder, Progress, RunState, Saver
from .config import JobConfig, load_config
from .errors import ConfigError, refuse
from .evaluation import Evaluation
from .extrapolation import LongEvaluation
from .heartbeat import Heartbeat
from .huggingface import export_step
from .messages import introduction, prompt_of, sample_text
from .metrics import Outcome, StepCounts, last_record, profiling
from .optim import StepGuard, clip_gradients, gradient_norm, learning_rate, reduce_losses, set_learning_rate
from .out_of_memory import out_of_memory_told
from .parallel import Inputs, compile_for_all_widths, stage, sum_over_replicas
from .prefetch import Prefetcher
from .processes import StopRequest, World, global_batch_size, join, lost_ranks_named, run_command, world_size
from .start import (
    Launch,
    Parts,
    TrainData,
    build_model_and_optimizer,
    host_facts,
    locked_run,
    open_data,
    open_run_folder,
    resume_data,
    starting_point,
    verify,
)
from .validation import Validation


class Trainer:
    """One job on one rank.

    Args:
        config: the resolved configuration.
        world: this process among the others.
        stop: polled at every wait; once true, the run ends after the current step, saved.
        parts: of a job that every rank has examined for this layout and its device; None: it is examined here.

    Raises:
        ConfigError, DataError, ModelError, EosMismatchError, CheckpointError: on all ranks alike, before any step.
    """

    def __init__(self, config: JobConfig, world: World, stop: StopRequest, parts: Parts | None = None) -> None:
        """Check what is cheap to check, open the data, then build the model and resume."""
        self.config, self.world, self.stop = config, world, stop
        self.ending = ""  # why training ends before its last step
        self.run_folder = Folder(config.job.dump_folder)
        self.checkpoints = self.run_folder / config.checkpoint.folder
        parts = parts or world.on_every_rank(lambda: verify(config, world.layout, world.device))
        self.tokenizer, self.decoder_config = parts
        self.mask = training_mask(config, self.tokenizer, world.device)
        rows_per_rank = global_batch_size(config, world.layout) // world.layout.data_parallel
        self.micro_batch_size = min(config.training.local_batch_size, rows_per_rank)
        self.micro_batches = rows_per_rank // self.micro_batch_size

        self.start = starting_point(config, self.run_folder, self.checkpoints, self.decoder_config, world)
        state = self.start.resumed.state if self.start.resumed else None
        self.progress = state.progress if state else Progress.start()
        step = self.progress.step
        self.data, self.data_state, refusal = resume_data(config, world, self.start, step, self.open_shard)
        self.data = world.slowly_on_every_rank(lambda: self.data.begun(self.mask, stop))
        self.first_batch = self.data.first
        self.prompt = world.gather(prompt_of(self.first_batch, self.tokenizer.eos_id) if self.first_batch else [])[0]
        self.evaluations, planned = world.on_every_rank(self.open_evaluations)

        self.model, self.optimizer = build_model_and_optimizer(config, self.decoder_config, world, self.start)
        self.guard = StepGuard(self.model, config, world.device)
        if state and state.guard:
            self.guard.load(state.guard)
        self.prefetch = Prefetcher(self.stage, world.device)

        # a run that continues elsewhere, from another's checkpoint, has no history in its own folder
        own = self.start.found is not None and self.start.found.path == self.checkpoints / f"step-{self.progress.step}"
        history = self.progress.step if own else 0
        self.log, aside = world.on_every_rank(
            lambda: open_run_folder(config, world, self.decoder_config, self.run_folder, self.checkpoints, history)
        )
        self.messages = [*self.start.messages, *filter(None, [refusal]), *planned, *aside]
        self.saver = Saver(config.checkpoint, self.run_folder, self.checkpoints, world, self.log.say, history)
        self.heartbeat = Heartbeat(world, stop, self.saver)

    def train(self) -> None:
        """Take steps until the job is done or a stop is requested; save, and say what comes next."""
        self.introduce()
        config, progress = self.config, self.progress
        if config.compile.enable and config.data.layout == "padded":
            widths = {"step": config.data.pad_multiple, "seq_len": config.training.seq_len}
            compile_for_all_widths(self.model, self.stage, rows=self.micro_batch_size, **widths)
        gc.disable()  # collected on a schedule instead, so that ranks do not stall each other at moments of their own
        with self.saver, profiling(config, self.world.rank, self.world.device) as profile:
            while progress.step < config.training.steps:
                started = time.perf_counter()
                batches, error = self.fetch()
                fetched = time.perf_counter()
                counts = self.step_counts(batches, error)
                if counts is None:
                    break
                outcome = self.advance(batches, counts)
                self.log.step(progress, counts, outcome, fetched - started, time.perf_counter() - started)
                profile(progress.step)
                if progress.step % config.training.gc_freq == 0:
                    gc.collect(1)
                if progress.step % config.checkpoint.interval == 0:
                    self.save()
                self.evaluate([evaluation for evaluation in self.evaluations if evaluation.is_due(progress.step)])
        gc.enable()
        self.saver.fail_hard()
        self.save()
        self.saver.finish()
        self.evaluate(self.evaluations)
        self.conclude()

    def advance(self, batches: list[Batch], counts: StepCounts) -> Outcome:
        """Take the step of some micro-batches, after which the run is one step and their rows further."""
        outcome = self.optimize(batches, counts)
        self.data_state = batches[-1].state
        self.progress.advance(dict(zip(self.log.sources, counts.tokens, strict=True)), counts.rows_hash)
        return outcome

    def fetch(self) -> tuple[list[Batch], Exception | None]:
        """Return this rank's micro-batches of the next step, fewer after a request to stop, and how the data failed."""
        batches: list[Batch] = []
        try:
            while len(batches) < self.micro_batches and (batch := self.next_batch()) is not None:
                batches.append(batch)
            if batches and (self.progress.step + 1) % self.config.metrics.log_freq == 0:
                self.data.contract.check_rows(batches[0], self.data.loader.packer.objective, self.mask)
        except (UserError, DataEnd) as error:
            return batches, error
        return batches, None

    def step_counts(self, batches: list[Batch], error: Exception | None) -> StepCounts | None:
        """Return what the step holds over all ranks, or None and why in `self.ending`. Raise a rank's error on all."""
        short = error is None and len(batches) < self.micro_batches
        # ranks that differ in cp or tp hold the same rows: only the first counts them
        counted = batches if self.world.is_row_leader else []
        sources, normalize = len(self.log.sources), self.config.data.normalize_weights
        unk_id = self.tokenizer.unk_id
        mine = StepCounts.of(counted, sources, normalize=normalize, attention=self.mask.attention, unk_id=unk_id)
        stopped, (shorts, errors, *counts) = self.heartbeat(int(short), int(error is not None), *mine.counts)
        targets = self.world.sum(mine.targets)
        if errors:
            met = [error for error in self.world.gather(error) if error]
            ends = [error for error in met if isinstance(error, DataEnd)]
            if len(ends) < len(met):
                self.save()  # the weights are good, and what lies before the bad record need not be trained again
                raise next(error for error in met if error not in ends)
            self.ending = str(ends[0])
        elif stopped or shorts:
            self.ending = self.stop.signal_name or "a signal to another rank"
        return None if self.ending else StepCounts.from_counts(counts, targets)

    def optimize(self, batches: list[Batch], counts: StepCounts) -> Outcome:
        """Take one optimizer step.

        A mean over a micro-batch would weigh a target by how full its own row is. So losses are summed, and divided by
        the number of targets, or the sum of their weights, of all ranks and micro-batches.
        """
        # documents of exactly `seq_len` tokens leave rows that hold nothing but an eos, and a small step may have no
        # other
        targets = sum(counts.targets) or 1.0
        # FSDP2 averages gradients over the ranks with tokens of their own; times their number, that is the sum
        scale = self.world.layout.gradient_ranks / targets
        sources = torch.arange(len(counts.targets), device=self.world.device)[:, None]
        # the loss, and what each source contributes to it
        local = torch.zeros(1 + len(counts.targets), device=self.world.device)
        for number, inputs in enumerate(self.prefetch(batches), 1):
            if self.world.layout.replicate > 1:
                sum_over_replicas(self.model, number == len(batches))
            losses = inputs.losses(self.model)
            loss = losses.sum()
            (loss * scale).backward()
            local[0] += loss.detach()
            local[1:] += (losses.detach().sum(1) * (inputs.drawn_from == sources)).sum(1)
        parameters = list(self.model.parameters())
        norm, norms = gradient_norm(parameters)
        by_source, norm = reduce_losses(local / targets if self.world.tp_rank == 0 else torch.zeros_like(local), norm)
        step = self.progress.step + 1
        skip = self.guard.watch(step, by_source[0], norm, local[0], norms)
        clip_gradients(parameters, norm, self.config.training.max_norm)
        set_learning_rate(self.optimizer, learning_rate(self.config, step))
        self.optimizer.step(number=step, skip=skip)
        self.optimizer.zero_grad()
        if self.log.due(step):  # nothing before this line waits for the device
            self.report_skipped_steps()
        return Outcome(by_source[0], norm, by_source[1:], self.guard.skipped)

    def evaluate(self, evaluations: Sequence[Evaluation]) -> None:
        """Run those evaluations that were not done after this very step, and report what they measure."""
        for evaluation in evaluations:
            if evaluation.done == self.progress.step:
                continue
            self.report_skipped_steps()
            evaluation.done = self.progress.step
            try:
                record = evaluation.run(self.progress.step, self.model, self.heartbeat)
            except UserError:
                self.save()  # the weights are good
                raise
            if record:
                self.log.write(record)

    def save(self) -> None:
        """Write a checkpoint of the steps done, unless there is one. Raises NonFiniteError after too many bad steps."""
        self.report_skipped_steps()
        if not self.config.checkpoint.enable or self.progress.step in (0, self.saver.step):
            return
        reports = self.world.gather((self.data_state, self.world.is_row_leader))
        data = merge_states([state for state, counted in reports if counted and state])
        missing = data.left_out()
        note = f"; left out so far: {missing}" if missing else ""
        state = RunState.of(
            config=self.config,
            model=self.decoder_config,
            contract=contract_of(self.tokenizer, self.decoder_config),
            progress=self.progress,
            guard=self.guard.state(),
            data=data,
            letters={source.config.name: source.letters for source in self.data.loader.sources},
        )
        self.saver.begin(self.progress.step, self.model, self.optimizer, state, self.data.loader.inventory(), note)

    def report_skipped_steps(self) -> None:
        """Say which steps were not taken since the last time. Raises NonFiniteError where too many were not finite."""
        if message := self.guard.check(self.world, str(self.checkpoints)):
            self.log.say(message)

    def stage(self, batch: Batch) -> Inputs:
        """Take this rank's part of a micro-batch to the device."""
        return stage(batch, self.mask, self.world)

    def next_batch(self) -> Batch | None:
        """Return the batch that the contract check read, then the loader's; None: told to stop while waiting."""
        batch, self.first_batch = self.first_batch, None
        return batch or self.data.loader.next(self.stop)

    def open_shard(self, shard: DataShard) -> TrainData:
        """Open the loader of a part of the data, and check the eos contract before a model exists."""
        return open_data(
            self.config,
            self.world.layout,
            self.tokenizer,
            self.mask,
            self.decoder_config.vocab_size,
            batch_size=self.micro_batch_size,
            buckets=self.micro_batches if self.config.data.length_buckets else 1,
            shard=shard,
            checkpoint=self.start.found,
        )

    def open_evaluations(self) -> tuple[list[Evaluation], list[str]]:
        """Return what is measured between steps, and messages about it."""
        config, world, step = self.config, self.world, self.progress.step
        evaluations: list[Evaluation] = []
        if data := self.data.validation:
            evaluations.append(Validation(config, world, data, self.tokenizer, self.stage, step))
        if not config.eval.extrapolation.enable:
            return evaluations, []
        extrapolation = LongEvaluation(config, world, self.tokenizer, self.decoder_config, step)
        return [*evaluations, extrapolation], extrapolation.plan.messages

    def introduce(self) -> None:
        """Say what is about to be trained."""
        loader, step, size = self.data.loader, self.progress.step, self.micro_batch_size
        what = introduction(self.config, self.world, self.decoder_config, self.mask.eos_id, loader, step, size)
        for message in [*self.messages, *what]:
            self.log.say(message)

    def conclude(self) -> None:
        """Say how the run ended, show a sample of what the model has learnt, and how to continue."""
        step, steps = self.progress.step, self.config.training.steps
        if self.ending:
            self.log.say(f"{self.ending}: stopped after step {step} of {steps}")
        elif self.prompt and self.config.training.objective == "causal":
            self.log.say(sample_text(self.model, self.tokenizer, self.prompt, self.world))
        for hint in self.config.hints(step, str(self.checkpoints)):
            self.log.say(hint)

    def will_stop(self) -> str:
        """Return what the run does when it is told to stop now."""
        step = self.progress.step
        saving = "saving" if self.config.checkpoint.enable else "ending unsaved: checkpoint.enable is false"
        if step >= self.config.training.steps or self.ending:
            return saving
        return f"finishing step {step + 1}, then {saving}"

    def close(self) -> None:
        """Stop the loader's workers and flush the reports."""
        self.data.loader.close()
        self.log.close()


@dataclass(frozen=True)
class TrainedRun:
    """How a run in this process ended.

    Attributes:
        folder: of the run: its checkpoints and records.
        step: optimizer steps done.
        metrics: the last record of `metrics.jsonl`, by name; empty where none was due.
    """

    folder: Path
    step: int
    metrics: dict[str, JsonValue]


def train(config: JobConfig | str | PathLike[str]) -> TrainedRun:
    """Train a job in this process, as `cistron train` does, and return how it ended.

        >>> run = train("words.toml")
        >>> run.step
        3
        >>> run.metrics["loss"] > 0
        True

    Args:
        config: of the job; or the path of its TOML, or the name of a shipped one: `debug`.

    Raises:
        UserError: the configuration, the data or a checkpoint is not what it must be; the message lists every mistake.
        NonFiniteError: too many steps in a row had a loss or gradients that are not finite.
        OutOfMemoryError: memory ran out; the message, which was printed too, says what would take less.
    """
    launch = Launch(world_size())
    if isinstance(config, JobConfig):
        refuse(launch.complaints(config))
    else:
        config, _ = load_config(["--config", str(config)], further=launch.complaints)
    return train_job(config, launch.parts)


def run(argv: Sequence[str]) -> None:
    """Train the job that `argv` describes."""
    launch = Launch(world_size())
    try:
        config, options = load_config(argv, further=launch.complaints)
    except ConfigError as error:
        error.passing |= launch.passing
        raise
    if options.print_config:
        print(config.to_toml(), end="")
    else:
        train_job(config, launch.parts)
        discard_unwritten()


def train_job(config: JobConfig, parts: Parts | None) -> TrainedRun:
    """Train a job whose configuration has passed its checks, and whose parts these are, in a folder that is its own."""
    with ExitStack() as folders:
        return train_in(folders, config, parts)


def train_in(folders: ExitStack, config: JobConfig, parts: Parts | None) -> TrainedRun:
    """Train a job, and leave its folder locked in `folders`."""
    trainer: Trainer | None = None
    with (
        dropped_output(),
        StopRequest(lambda: trainer.will_stop() if trainer else "stopping before the first step") as stop,
        lost_ranks_named(
            lambda: f"after step {trainer.progress.step}" if trainer else "at the start", config.comm.timeout_seconds
        ),
    ):
        try:
            world = join(config, further=lambda: host_facts(config, parts) if parts else {}, stop=stop)
            with out_of_memory_told(
                config, world, lambda: f"step {trainer.progress.step + 1}" if trainer else "before the first step", stop
            ):
                folders.enter_context(locked_run(config, world, stop))
                trainer = Trainer(config, world, stop, parts)
                try:
                    trainer.train()
                finally:
                    trainer.close()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    # no process group is left: rank 0 takes as long as the weights need, and no rank waits for it in a collective
    if world.is_first and config.checkpoint.last_save_in_hf and trainer.progress.step >= config.training.steps:
        for message in export_step(config, trainer.checkpoints / f"step-{trainer.progress.step}"):
            trainer.log.say(message)
    folder = Path(config.job.dump_folder)
    return TrainedRun(folder, trainer.progress.step, last_record(folder / "metrics.jsonl"))


def main(argv: Sequence[str]) -> None:
    """Run `cistron train`, which torchrun starts as `cistron.trainer.train`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command(lambda: run(argv))


if __name__ == "__main__":
    main(sys.argv[1:])

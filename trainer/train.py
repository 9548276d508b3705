"""Training, in the order of a run: check everything cheap, feed, build, resume, loop.

torchrun --nproc_per_node 2 -m cistron.trainer.train --config x.toml [--section.key value ...]
"""

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grads_with_norm_

from .. import __version__
from ..base import UserError
from ..datasets.errors import DataEnd, DataOrderError
from ..datasets.loading import Batch, DataShard, DataState, Inventory, merge_states
from ..models.init import init_weights
from .build import attention_of, check_rows, fresh_parameters, make_mask, make_model, other_roles
from .checkpoints import NEWEST as checkpoint_NEWEST
from .checkpoints import STATE as checkpoint_STATE
from .checkpoints import CheckpointReader, Folder, Progress, Saver, remember_going_back, set_aside_after
from .checkpoints import load as checkpoint_load
from .config import JobConfig, load_config
from .errors import CheckpointError, ConfigError
from .estimates import sizes_of
from .extrapolation import LongEvaluation
from .huggingface import export_step
from .inference import opening, sample
from .loss import summed_loss
from .metrics import MetricsLog, Outcome, StepCounts, profiling
from .optim import StepGuard, build_optimizer, gradient_norm, learning_rate, reduce_losses, set_learning_rate
from .parallel import compile_for_all_widths, parallelize, spread_rows, without_context_parallel
from .prefetch import Prefetcher, pinned
from .processes import DTYPES, StopRequest, World, global_batch_size, join, limit_collectives, lost_peers_named, run_command
from .start import TrainData, open_data, origin, verify
from .validation import Validation


class Trainer:
    """One job on one rank.

    Args:
        config: the resolved configuration.
        world: this process among the others.
        stop: polled at every wait; once true, the run ends after the current step, saved.

    Raises:
        ConfigError, DataError, ModelError, EosMismatchError, CheckpointError: on all ranks alike, before any step.
    """

    def __init__(self, config: JobConfig, world: World, stop: StopRequest) -> None:
        """Check what is cheap to check, open the data, then build the model and resume."""
        self.config, self.world, self.stop = config, world, stop
        self.ending = ""  # why training ends before its last step
        self.folder = Path(config.job.dump_folder)
        self.checkpoints = Folder(self.folder) / config.checkpoint.folder
        self.tokenizer, self.decoder_config = world.on_every_rank(lambda: verify(config, world.layout, world.device))
        self.mask = make_mask(config, self.tokenizer, world.device)
        rows_per_rank = global_batch_size(config, world.layout) // world.layout.data_parallel
        self.micro_batch_size = min(config.training.local_batch_size, rows_per_rank)
        self.micro_batches = rows_per_rank // self.micro_batch_size

        shape = self.decoder_config.model_dump()
        run = Folder(self.folder)
        found = origin(config, run, self.checkpoints, shape, world)
        self.origin, self.resuming, self.messages = found
        resumed = self.origin.state if self.origin and self.resuming else {"progress": {}}
        self.progress = Progress(**resumed["progress"])
        self.data_state: DataState | None = None
        self.feed = self.open_data()
        self.first_batch = self.feed.first
        self.prompt = world.gather(opening(self.first_batch, self.tokenizer.eos_id) if self.first_batch else [])[0]
        data = self.feed.validation
        self.validation = Validation(config, world, data, self.tokenizer, self.progress.step) if data else None
        self.extrapolation = world.on_every_rank(self.open_extrapolation)
        self.build_model()
        if self.resuming:
            self.guard.load_state_dict(resumed["guard"])
        # a run that goes on elsewhere, from another's checkpoint, has no history in its own folder
        own = self.origin is not None and self.origin.path == self.checkpoints / f"step-{self.progress.step}"
        history = self.progress.step if own else 0
        self.log = world.on_every_rank(lambda: self.open_folder(history))
        self.saver = Saver(config.checkpoint, run, self.checkpoints, world, self.log.say, history)

    def train(self) -> None:
        """Take steps until the job is done or a stop is asked for, save, and say what comes next."""
        self.introduce()
        if self.config.compile.enable and self.config.data.layout == "padded":
            widths = {"step": self.config.data.pad_multiple, "seq_len": self.config.training.seq_len}
            compile_for_all_widths(self.model, self.to_device, rows=self.micro_batch_size, **widths)
        gc.disable()  # collected on a schedule instead, so that ranks do not stall each other at moments of their own
        with self.saver, profiling(self.config, self.world.rank, self.world.device) as profile:
            while self.progress.step < self.config.training.steps:
                started = time.perf_counter()
                batches, error = self.fetch()
                fetched = time.perf_counter()
                totals = self.agree(batches, error)
                if totals is None:
                    break
                outcome = self.optimize(batches, totals)
                self.data_state = batches[-1].state
                self.progress.advance(dict(zip(self.log.sources, totals.tokens, strict=True)), totals.rows_hash)
                self.log.step(self.progress, totals, outcome, fetched - started, time.perf_counter() - started)
                profile(self.progress.step)
                if self.progress.step % self.config.training.gc_freq == 0:
                    gc.collect(1)
                if self.progress.step % self.config.checkpoint.interval == 0:
                    self.save()
                if self.validation and self.validation.is_due(self.progress.step):
                    self.validate()
                if self.extrapolation and self.extrapolation.is_due(self.progress.step):
                    self.extrapolate()
        gc.enable()
        self.saver.fail_hard()
        self.save()
        self.saver.finish()
        self.validate()
        self.extrapolate()
        self.conclude()

    def validate(self) -> None:
        """Report the loss on the validation sources, where there are any, unless it was done after this very step."""
        if self.validation is None or self.validation.done == self.progress.step:
            return
        self.report_skipped_steps()
        try:
            record = self.validation.run(self.progress.step, self.model, self.to_device, self.stop, self.saver)
        except UserError:
            self.save()  # the weights are good
            raise
        if record:
            self.log.write(record)

    def open_extrapolation(self) -> LongEvaluation | None:
        """What `[eval.extrapolation]` asks for."""
        if not self.config.eval.extrapolation.enable:
            return None
        opened = LongEvaluation(self.config, self.world, self.tokenizer, self.decoder_config, self.progress.step)
        self.messages += opened.plan.messages
        return opened

    def extrapolate(self) -> None:
        """Report what the model makes of longer documents, if asked for, unless it was done after this very step."""
        if self.extrapolation is None or self.extrapolation.done == self.progress.step:
            return
        if record := self.extrapolation.run(self.progress.step, self.model, self.stop, self.saver):
            self.log.write(record)

    def fetch(self) -> tuple[list[Batch], Exception | None]:
        """This rank's micro-batches of the next step: fewer when a stop was asked for, and how the data failed or ended."""
        batches: list[Batch] = []
        try:
            while len(batches) < self.micro_batches and (batch := self.next_batch()) is not None:
                batches.append(batch)
            if batches and (self.progress.step + 1) % self.config.metrics.log_freq == 0:
                check_rows(batches[0], self.feed.loader.packer.objective, self.mask, self.feed.statements)
        except (UserError, DataEnd) as error:
            return batches, error
        return batches, None

    def agree(self, batches: list[Batch], error: Exception | None) -> StepCounts | None:
        """What the step holds over all ranks, or None and why in `self.ending`. Raises one rank's error on all."""
        stop = self.stop() or (error is None and len(batches) < self.micro_batches)
        # ranks that differ in cp or tp hold the same rows: only the first counts them
        counted = batches if self.world.is_row_leader else []
        sources, normalize = len(self.log.sources), self.config.data.normalize_weights
        mine = StepCounts.of(counted, sources, normalize=normalize, attention=self.mask.attention)
        stops, errors, ready, *counts = self.world.sum([int(stop), int(error is not None), int(self.saver.ready), *mine.counts])
        if ready == self.world.layout.world_size:
            self.saver.advance()
        targets = self.world.sum(mine.targets)
        if errors:
            met = [error for error in self.world.gather(error) if error]
            ends = [error for error in met if isinstance(error, DataEnd)]
            if len(ends) < len(met):
                self.save()  # the weights are good, and what lies before the bad record need not be trained again
                raise next(error for error in met if error not in ends)
            self.ending = str(ends[0])
        elif stops:
            self.ending = self.stop.signal_name or "a signal to another rank"
        return None if self.ending else StepCounts.from_counts(counts, targets)

    def optimize(self, batches: list[Batch], totals: StepCounts) -> Outcome:
        """One optimizer step."""
        # documents of exactly `seq_len` tokens leave rows that hold nothing but an eos, and a small step may have no other
        targets = sum(totals.targets) or 1.0
        # FSDP2 averages gradients over the ranks with tokens of their own; times their number, that is the sum
        scale = self.world.layout.gradient_ranks / targets
        # the loss, and what each source contributes to it
        local = torch.zeros(1 + len(totals.targets), device=self.world.device)
        for inputs, drawn_from in self.prefetch(batches):
            loss, by_row = summed_loss(self.model, *inputs)
            (loss * scale).backward()
            local[0] += loss.detach()
            local[1:] += (by_row * drawn_from).sum(1)
        parameters = list(self.model.parameters())
        norm, norms = gradient_norm(parameters)
        losses, norm = reduce_losses(local / targets if self.world.tp_rank == 0 else torch.zeros_like(local), norm)
        step = self.progress.step + 1
        skip = self.guard.watch(step, losses[0], norm, local[0], norms)
        clip_grads_with_norm_(parameters, self.config.training.max_norm, norm)
        set_learning_rate(self.optimizer, learning_rate(self.config, step))
        self.optimizer.step(number=step, skip=skip)
        self.optimizer.zero_grad()
        if self.log.due(step):  # nothing before this line waits for the device
            self.report_skipped_steps()
        return Outcome(losses[0], norm, losses[1:], self.guard.skipped)

    def report_skipped_steps(self) -> None:
        """Say which steps were not taken since the last time. Raises NonFiniteError where too many were not finite."""
        if message := self.guard.check(self.world, str(self.checkpoints)):
            self.log.say(message)

    def stage(self, batch: Batch) -> tuple[tuple[Any, ...], torch.Tensor]:
        """A micro-batch where the model is, and bool [sources, rows]: which source each row was drawn from."""
        drawn_from = torch.tensor([[s == source for s in batch.sources] for source in range(len(self.log.sources))])
        return self.to_device(batch), drawn_from.to(self.world.device, non_blocking=True)

    def to_device(self, batch: Batch) -> tuple[Any, ...]:
        """This rank's tokens, labels, positions, mask, and weights and values or None of a micro-batch, where the model is."""
        device = self.world.device
        planes = (batch.tokens, batch.labels, batch.positions, batch.weights, batch.values)
        own, queries, keys = spread_rows(planes, batch.sequence_ids, self.mask, self.world.mesh["cp"])
        *own, ids, queries, keys = pinned([*own, batch.sequence_ids, queries, keys], device)
        tokens, labels, positions, weights, values = (None if t is None else t.to(device, non_blocking=True) for t in own)
        return tokens, labels, positions, self.mask.build(ids, device, queries, keys), weights, values

    def next_batch(self) -> Batch | None:
        """The batch that the contract check looked at, then the loader's; None when a stop was asked for while waiting."""
        batch, self.first_batch = self.first_batch, None
        return batch or self.feed.loader.next(self.stop)

    def open_data(self) -> TrainData:
        """Start the loader and hold the eos contract before a model exists.

        Where a resume finds the data changed, on any rank, all ranks begin it anew, if `data.on_change` says so.
        """
        feed, refusal = self.world.on_every_rank(self.resume_data)
        refusal = next(filter(None, self.world.gather(refusal)), None)
        if refusal is None and feed:
            return feed
        if feed:
            feed.loader.close()
        self.data_state = None
        row = self.progress.step * global_batch_size(self.config, self.world.layout)
        self.messages.append(f'{refusal}; data.on_change = "restart": the data begins anew, at row {row}')
        return self.world.on_every_rank(lambda: self.open_data_at(row=row))

    def resume_data(self) -> tuple[TrainData | None, str | None]:
        """The data where the checkpoint left it, or else why it must begin anew."""
        inventory = self.origin.inventory() if self.origin and self.resuming else None
        rows = self.progress.step * global_batch_size(self.config, self.world.layout)
        try:
            if self.origin and self.resuming:
                self.data_state = DataState.read(self.origin.state["data"])
            if self.config.data.stages and self.data_state and self.data_state.rows != rows:
                raise DataOrderError(
                    f"data.stages begin at steps, and step {self.progress.step} ended at row {self.data_state.rows}, "
                    f"which by the present training.global_batch_size is row {rows}; keep that of the checkpoint"
                )
            return self.open_data_at(state=self.data_state, inventory=inventory), None
        except DataOrderError as e:
            assert self.origin
            refusal = f"{self.origin.path}: {e}"
            if self.config.data.on_change == "refuse":
                raise CheckpointError(f'{refusal}; data.on_change = "restart" accepts it') from None
            return None, refusal

    def open_data_at(self, state: DataState | None = None, inventory: Inventory | None = None, row: int = 0) -> TrainData:
        """This rank's loader from a state on, or without one from a global row on."""
        world, origin = self.world, self.origin
        return open_data(
            self.config,
            world.layout,
            self.tokenizer,
            self.mask,
            self.decoder_config.vocab_size,
            batch_size=self.micro_batch_size,
            buckets=self.micro_batches if self.config.data.length_buckets else 1,
            shard=DataShard(
                dp_rank=world.dp_rank, dp_degree=world.layout.data_parallel, state=state, inventory=inventory, row=row
            ),
            contract={"where": f"{origin.path}/{checkpoint_STATE}", **origin.state["contract"]} if origin else None,
            interrupted=self.stop,
        )

    def build_model(self) -> None:
        """Materialise this rank's share of a model laid out on the meta device, with fresh or loaded weights."""
        with torch.device("meta"):
            self.model = make_model(self.config, self.decoder_config).to(DTYPES[self.config.training.dtype])
        parallelize(self.model, self.config, self.world)
        self.model.to_empty(device=self.world.device)
        self.optimizer = build_optimizer(self.model, self.config)
        limit_collectives(self.config)  # Muon has process groups of its own
        self.guard = StepGuard(self.model, self.config, self.world.device)
        self.prefetch = Prefetcher(self.stage, self.world.device)
        if self.origin is None:
            init_weights(self.model, self.config.training.seed)
        else:
            readers: list[CheckpointReader] = []
            found = self.origin
            self.world.in_thread_on_every_rank(lambda: readers.append(found.reader()))
            fresh = fresh_parameters(self.model, readers[0].index)
            init_weights(self.model, self.config.training.seed, only=fresh)
            checkpoint_load(found, readers[0], self.model, self.optimizer if self.resuming else None, fresh)

    def open_folder(self, history: int) -> MetricsLog:
        """Make the run's folder and open its reports, last of all: a job that is refused changes nothing on disk.

        Args:
            history: step up to which what is in the folder is this run's own.
        """
        try:
            if self.world.is_first:
                Folder(self.folder).make(parents=True)
                self.checkpoints.make(parents=True)
                Folder(self.folder).write_atomically("config.toml", self.config.to_toml())
                if self.config.checkpoint.enable:
                    aside = set_aside_after(self.checkpoints, history)
                    self.messages += [f"set aside {path}: this run goes on from an earlier step" for path in aside]
                    remember_going_back(self.checkpoints, self.config.checkpoint)
                    if not history:
                        Folder(self.folder).delete(checkpoint_NEWEST)
            return MetricsLog(self.folder, self.config, self.world, history, self.decoder_config)
        except OSError as e:
            reason = f"{e.strerror}: {e.filename}"
            raise ConfigError(f"job.dump_folder = {str(self.folder)!r}: cannot be written: {reason}") from None

    def save(self) -> None:
        """Write a checkpoint of the steps done, unless there is one. Raises NonFiniteError where too many were not finite."""
        self.report_skipped_steps()
        if not self.config.checkpoint.enable or self.progress.step in (0, self.saver.step):
            return
        reports = self.world.gather((self.data_state, self.world.is_row_leader))
        data = merge_states([data_state for data_state, counted in reports if counted and data_state])
        state = {
            "progress": asdict(self.progress),
            "guard": self.guard.state_dict(),
            "data": data.model_dump(mode="json"),
            "contract": {
                "eos": self.mask.eos_id,
                "pad": self.mask.pad_id,
                "vocab": self.decoder_config.vocab_size,
                "tokenizer": self.tokenizer.fingerprint,
                **other_roles(self.tokenizer),
            },
            "model": self.decoder_config.model_dump(),
            "config": self.config.to_dict(),
            "versions": {"cistron": __version__, "torch": torch.__version__},
        }
        missing = data.left_out()
        note = f"; left out so far: {missing}" if missing else ""
        self.saver.begin(self.progress.step, self.model, self.optimizer, state, self.feed.loader.inventory(), note)

    def introduce(self) -> None:
        """Say what is about to be trained."""
        c = self.config
        layout = self.world.layout
        rows = self.micro_batches * self.micro_batch_size * layout.data_parallel
        executor, why = attention_of(c, self.world.device)
        of_shards = [remark for source in self.feed.loader.sources for remark in source.remarks()]
        for message in [*self.messages, *c.remarks(self.progress.step), *of_shards]:
            self.log.say(message)
        self.log.say(
            f"{c.model.preset}: {sizes_of(c, self.decoder_config)}, {executor} attention ({why}) over documents ending in "
            f"eos {self.mask.eos_id}; {rows} rows x {c.training.seq_len} tokens a step on {layout.world_size} process(es) "
            f"({self.world.device.type}): {layout}, {self.micro_batches} micro-batch(es) of {self.micro_batch_size} rows"
        )

    def conclude(self) -> None:
        """Say how the run ended, show a sample of what the model has learnt, and how to go on."""
        step, steps = self.progress.step, self.config.training.steps
        if self.ending:
            self.log.say(f"{self.ending}: stopped after step {step} of {steps}")
        elif self.prompt and self.config.training.objective == "causal":
            room = {"multiple_of": self.world.layout.tp, "max_new_tokens": 120}
            with without_context_parallel(self.model):
                text = sample(self.model, self.tokenizer, self.prompt, device=self.world.device, **room)
            self.log.say(f"\nA sample, continuing {self.tokenizer.decode(self.prompt)!r}:\n{text}\n")
        for hint in self.config.hints(step, str(self.checkpoints)):
            self.log.say(hint)

    def close(self) -> None:
        """Stop the loader's workers and flush the reports."""
        self.feed.loader.close()
        self.log.close()


def run(argv: Sequence[str]) -> None:
    """Train the job that `argv` describes."""
    config, options = load_config(argv)
    if options.print_config:
        print(config.to_toml(), end="")
        return
    trainer: Trainer | None = None
    with (
        StopRequest() as stop,
        lost_peers_named(
            lambda: f"after step {trainer.progress.step}" if trainer else "at the start", config.comm.timeout_seconds
        ),
    ):
        world = join(config)
        try:
            trainer = Trainer(config, world, stop)
            try:
                trainer.train()
            finally:
                trainer.close()
        finally:
            dist.destroy_process_group()
    # no process group is left: rank 0 takes as long as the weights need, and nobody waits for it in a collective
    if world.is_first and config.checkpoint.last_save_in_hf and trainer.progress.step >= config.training.steps:
        for message in export_step(config, trainer.checkpoints / f"step-{trainer.progress.step}"):
            trainer.log.say(message)


def main(argv: Sequence[str]) -> None:
    """`cistron train`, and what torchrun starts as `cistron.trainer.train`."""
    run_command(lambda: run(argv))


if __name__ == "__main__":
    main(sys.argv[1:])

"""`[eval.extrapolation]` in training: every `freq` steps and after the last one, on all ranks."""

import json
import sys
import time
from functools import partial
from pathlib import Path

from typing_extensions import override

from ...datasets.tokenizers import Tokenizer
from ...models.config import DecoderConfig
from ...models.decoder import Decoder
from ..config import JobConfig
from ..evaluation import Evaluation
from ..heartbeat import Heartbeat
from ..inference import BATCH_TOKENS
from ..metrics import MetricsRecord
from ..parallel import without_context_parallel
from ..processes import DTYPES, World
from .long_rows import LongRowModel
from .measures import LengthResult, Plan, evaluate, plan, read_sources, results_json, trained_as

FOLDER = "extrapolation"  # of the run's; a run that goes back forgets what it left there


def plan_of(config: JobConfig, tokenizer: Tokenizer, decoder: DecoderConfig) -> Plan:
    """Return what `[eval.extrapolation]` of a job measures; its messages begin with the length that the model knows.

    Raises:
        ConfigError, ModelError, DataConfigError, DataError: it cannot be measured.
    """
    trained, said = trained_as(decoder, config.training.seq_len, "training.seq_len")
    found = plan(config.eval.extrapolation, trained, tokenizer, partial(read_sources, config, tokenizer))
    return found._replace(messages=[f"extrapolation: {said}", *found.messages])


class Interrupted(Exception):
    """A rank was told to stop; raised on all ranks after the same batch."""


class LongEvaluation(Evaluation):
    """Reads the documents once, and measures a model on them whenever it is due.

    Args:
        config: of the job.
        world: this process among the others.
        tokenizer: of the job.
        decoder: the model's shape.
        done: step of the last evaluation, which is that of a checkpoint to resume from.

    Attributes:
        plan: what is measured.

    Raises:
        ConfigError, ModelError, DataConfigError, DataError: it cannot be measured.
    """

    def __init__(self, config: JobConfig, world: World, tokenizer: Tokenizer, decoder: DecoderConfig, done: int) -> None:
        super().__init__(done)
        self.config, self.world, self.tokenizer = config, world, tokenizer
        self.table, self.plan = config.eval.extrapolation, plan_of(config, tokenizer, decoder)

    @override
    def is_due(self, step: int) -> bool:
        return step % self.table.freq == 0

    @override
    def run(self, step: int, model: Decoder, heartbeat: Heartbeat) -> MetricsRecord | None:
        """Measure the model, and stop after any batch. Rank 0 leaves table and picture in the run's folder."""
        started = time.perf_counter()

        def between(_: int) -> None:
            stopped, _counts = heartbeat()
            if stopped:
                raise Interrupted

        long_model = LongRowModel(
            model=model,
            tokenizer=self.tokenizer,
            device=self.world.device,
            dtype=DTYPES[self.config.training.mixed_precision_param],
            batch_tokens=BATCH_TOKENS,
            world=self.world,
            executor=self.config.model.attention.executor,
            tick=between,
        )
        try:
            with without_context_parallel(model):
                results = evaluate(long_model, self.table, self.plan)
        except Interrupted:
            return None
        if self.world.is_first:
            self.keep(step, results)
        curves = {name: value for result in results for name, value in result.curves().items()}
        seconds = time.perf_counter() - started
        line = f"step {step:>6}  extrapolation/step-{step}.png in {seconds:.1f} s"
        return MetricsRecord("extrapolation", {"step": step, **curves, "seconds": seconds}, line)

    def keep(self, step: int, results: list[LengthResult]) -> None:
        """Write table and picture into the run's folder. A failure is a warning: a full disk is no reason to stop."""
        from .report import draw_curves  # matplotlib takes 0.3 s to import

        folder = Path(self.config.job.dump_folder) / FOLDER
        found = {"step": step, **results_json(results, self.table, self.plan)}
        try:
            folder.mkdir(exist_ok=True)
            (folder / f"step-{step}.json").write_text(json.dumps(found, indent=1) + "\n")
            draw_curves(results, self.plan.trained.length, self.table.score_last, folder / f"step-{step}.png")
        except OSError as error:
            print(f"warning: step {step} is not whole in {folder}: {error}", file=sys.stderr, flush=True)

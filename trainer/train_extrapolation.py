"""`[eval.extrapolation]` in training: every `freq` steps and after the last one, on all ranks, from the weights as they are."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..datasets.tokenizers import Tokenizer
from ..models.config import DecoderConfig
from ..models.decoder import Decoder
from .config import JobConfig
from .context import whole_rows
from .distributed import World
from .extrapolation import evaluate, plan, read_sources, report
from .inference import BATCH_TOKENS
from .long_rows import Runner
from .parallelize import DTYPES

FOLDER = "extrapolation"


class LongEvaluation:
    """Reads the documents once, and asks a model about them whenever it is due.

    Args:
        config: of the job.
        world: this process among the others.
        tokenizer: of the job.
        decoder: the model's shape.
        done: step of the last evaluation, which is that of a checkpoint to resume from.

    Attributes:
        messages: what a person should know of it, a line each.

    Raises:
        ConfigError, ModelError, DataConfigError, DataError: what is asked for cannot be measured.
    """

    def __init__(self, config: JobConfig, world: World, tokenizer: Tokenizer, decoder: DecoderConfig, done: int) -> None:
        """Find what is wrong before the first step."""
        self.config, self.world, self.tokenizer, self.decoder, self.done = config, world, tokenizer, decoder, done
        self.table = config.eval.extrapolation
        stated = decoder.rope.original_seq_len
        trained = stated or config.training.seq_len
        self.plan = plan(self.table, decoder, tokenizer, trained, partial(read_sources, config, tokenizer))
        key = "model.rope.original_seq_len" if stated else "training.seq_len"
        self.messages = [f"extrapolation from {key} = {trained}", *self.plan.messages]

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after `step`."""
        return step % self.table.freq == 0

    def run(self, step: int, model: Decoder, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The record of one evaluation, the same on every rank; None when a stop was asked for meanwhile.

        Rank 0 leaves table and picture in the run's folder.
        """
        started = time.perf_counter()
        self.done = step
        runner = Runner(
            model=model,
            tokenizer=self.tokenizer,
            device=self.world.device,
            dtype=DTYPES[self.config.training.mixed_precision_param],
            batch_tokens=BATCH_TOKENS,
            world=self.world,
        )

        def stopped() -> bool:
            return self.world.sum([int(stop())])[0] > 0

        with whole_rows(model):
            results = evaluate(runner, self.decoder, self.table, self.plan, stopped)
        if results is None:
            return None
        if self.world.is_first:
            from .extrapolation_report import draw  # matplotlib takes 0.3 s to import

            folder = Path(self.config.job.dump_folder) / FOLDER
            folder.mkdir(exist_ok=True)
            found = report(results, self.table, self.plan)
            (folder / f"step-{step}.json").write_text(json.dumps({"step": step, **found}, indent=1) + "\n")
            draw(results, self.plan.trained, self.table.score_last, folder / f"step-{step}.png")
        curves = {name: value for result in results for name, value in result.curves().items()}
        return {"step": step, **curves, "seconds": time.perf_counter() - started}

"""What the trainer costs on top of a bare loop: the same model, batches and optimizer, alternately two steps each.

    python benchmarks/trainer_overhead.py --steps 100

The bare loop is what a tutorial would write: a plain module, mean loss, clipping, fused AdamW. The trainer's step is
everything between two steps of `cistron train`: fetching, the agreement between ranks, FSDP2 on one rank, metrics,
hashing the rows.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from cistron.datasets.loading import Batch
from cistron.models.decoder import Decoder
from cistron.models.init import init_weights
from cistron.trainer.config import load_config
from cistron.trainer.optim import build_optimizer
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run both loops alternately and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "train_configs" / "debug.toml"), help="job to run")
    parser.add_argument("--steps", type=int, default=100, help="steps of the trainer (default: 100)")
    parser.add_argument("--warmup", type=int, default=5, help="pairs not counted (default: 5)")
    parser.add_argument("overrides", nargs="*", help="TOML overrides, after --")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        argv = ["--config", options.config, "--job.dump_folder", folder, "--training.steps", str(options.steps)]
        config, _ = load_config([*argv, "--checkpoint.enable", "false", *options.overrides])
        trainer = Trainer(config, join(config), StopRequest())
        device = trainer.world.device
        bare = Decoder(trainer.decoder_config).to(device)
        init_weights(bare, config.training.seed)
        optimizer = build_optimizer(bare, config)
        bare_seconds: list[float] = []
        trainer_seconds: list[float] = []

        def bare_step(batches: list[Batch]) -> None:
            for batch in batches:
                tokens, labels, positions = (t.to(device) for t in (batch.tokens, batch.labels, batch.positions))
                logits = bare(tokens, positions, trainer.mask.build(batch.sequence_ids, device))
                loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
                (loss / len(batches)).backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), config.training.max_norm)
            optimizer.step()
            optimizer.zero_grad()

        def synchronized() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

        fetch, previous, calls, started = trainer.fetch, [], 0, 0.0

        def fetch_between_bare_steps() -> tuple[list[Batch], Exception | None]:
            """The trainer's loop calls this once per step: from one return to the next call is the trainer's own time.

            Two steps of one, two of the other; the second of each pair counts. The first after a change finds the
            caches full of the other's weights: a bare step is 2 % slower there, which no loop that runs alone would
            see.
            """
            nonlocal previous, calls, started
            now = synchronized()
            if calls and calls % 2 == 0:
                trainer_seconds.append(now - started)
                bare_step(previous)
                now = synchronized()
                bare_step(previous)
                bare_seconds.append(synchronized() - now)
            calls += 1
            started = synchronized()
            previous, error = fetch()
            return previous, error

        trainer.fetch = fetch_between_bare_steps
        trainer.conclude = lambda: None
        trainer.train()
        trainer.close()

    ours, plain = (statistics.median(seconds[options.warmup :]) for seconds in (trainer_seconds, bare_seconds))
    print(f"\nbare loop {plain * 1e3:.1f} ms a step, trainer {ours * 1e3:.1f} ms a step (medians of {len(bare_seconds)} pairs)")
    print(f"trainer / bare = {ours / plain:.3f}")


if __name__ == "__main__":
    main()

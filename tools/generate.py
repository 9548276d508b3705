"""`cistron generate CHECKPOINT --prompt TEXT`: sample from a checkpoint of any layout, on one device."""

import argparse
import sys
from collections.abc import Sequence

import torch

from ..datasets.tokenizers import TokenizeError
from ..trainer import checkpoint
from ..trainer.components import make_model, make_tokenizer, saved_job
from ..trainer.config import ConfigError
from ..trainer.contract import Statement, check_statements
from ..trainer.distributed import pick_device
from ..trainer.failures import run_command
from ..trainer.sampling import sample


def main(argv: Sequence[str]) -> None:
    """Parse, load, sample, print."""
    parser = argparse.ArgumentParser(prog="cistron generate", description=__doc__)
    parser.add_argument("checkpoint", help="<dump_folder>/checkpoint/step-<N>; without step-<N>: the newest")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="stop here if no eos came (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="draw from the k most likely tokens (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--samples", type=int, default=1, help="how many, with seeds seed, seed + 1, ... (default: 1)")
    options = parser.parse_args(argv)
    run_command(lambda: generate(options))


def generate(options: argparse.Namespace) -> None:
    """Print `options.samples` continuations of the prompt."""
    for name, value, smallest in (("temperature", options.temperature, 0), ("top-k", options.top_k, 1)):
        if not smallest <= value < float("inf"):
            raise ConfigError(f"--{name} {value}: must be finite and at least {smallest}")
    found, skipped = checkpoint.read_newest(options.checkpoint)
    for message in skipped:
        print(message, file=sys.stderr)
    config, decoder = saved_job(found)
    tokenizer = make_tokenizer(config)
    saved = found.state["contract"]
    check_statements(
        [
            Statement(party="tokenizer", where=tokenizer.where, eos=(tokenizer.eos_id,), pad=tokenizer.pad_id),
            Statement(party="model", where=f"{found.path}/{checkpoint.STATE}", eos=(saved["eos"],), vocab=decoder.vocab_size),
        ]
    )
    try:
        prompt = tokenizer.encode(options.prompt.encode(errors="surrogateescape")).tolist()
    except TokenizeError as error:
        raise ConfigError(f"--prompt: {error.problem}") from None
    if not prompt:
        raise ConfigError("--prompt: has no tokens; a model learns to continue documents, not to begin them")
    device = pick_device()
    with torch.device("meta"):
        model = make_model(config, decoder)
    model.to_empty(device=device)
    checkpoint.load(found, found.reader(), model, optimizer=None)
    for index in range(options.samples):
        text = sample(
            model,
            tokenizer,
            prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed + index,
            device=device,
        )
        print(f"{options.prompt}{text}")


if __name__ == "__main__":
    main(sys.argv[1:])

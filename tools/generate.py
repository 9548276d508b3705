"""`cistron generate CHECKPOINT --prompt TEXT`: sample from a checkpoint of any layout, on one device."""

import argparse
import sys
from collections.abc import Sequence

from ..datasets.tokenizers import TokenizeError
from ..trainer.errors import ConfigError
from ..trainer.inference import open_model, refuse_encoder, refuse_head, sample
from ..trainer.processes import run_command


def main(argv: Sequence[str]) -> None:
    """Parse, load, sample, print."""
    parser = argparse.ArgumentParser(prog="cistron generate", description=__doc__)
    parser.add_argument("checkpoint", help="<dump_folder>/checkpoint/step-<N>; without step-<N>: the newest; or a HF folder")
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
    opened = open_model(options.checkpoint)
    refuse_head(opened, "generate")
    refuse_encoder(opened, "generate")
    for message in opened.messages:
        print(message, file=sys.stderr)
    try:
        prompt = opened.tokenizer.encode(options.prompt.encode(errors="surrogateescape")).tolist()
    except TokenizeError as error:
        raise ConfigError(f"--prompt: {error.problem}") from None
    if not prompt:
        raise ConfigError("--prompt: has no tokens; a model learns to continue documents, not to begin them")
    for index in range(options.samples):
        text = sample(
            opened.model,
            opened.tokenizer,
            prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed + index,
            device=opened.device,
        )
        print(f"{options.prompt}{text}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""`cistron generate CHECKPOINT --prompt TEXT`: sample from a checkpoint of any layout, on one device.

Written to a file or a pipe, prompt and samples are as they are; on a terminal, control characters in them are shown as
text.
"""

import argparse
import sys
from collections.abc import Sequence

from ..base import COUNT
from ..trainer.inference import open_model, sample
from ..trainer.processes import data_output
from . import cli
from .support import whole_number


def main(argv: Sequence[str]) -> None:
    """Open the model, and print `--samples` continuations of the prompt."""
    parser = argparse.ArgumentParser(prog="cistron generate", description=__doc__)
    parser.add_argument("checkpoint", help="<dump_folder>/checkpoint/step-<N>; without step-<N>: the newest; or a HF folder")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="stop here if no eos came (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="draw from the k most likely tokens (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument(
        "--samples", type=whole_number(1, COUNT), default=1, help="how many, with seeds seed, seed + 1, ... (default: 1)"
    )
    options = parser.parse_args(argv)
    opened = open_model(options.checkpoint)
    for message in opened.messages:
        print(message, file=sys.stderr)
    for index in range(options.samples):
        text = sample(
            opened,
            options.prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed + index,
        )
        print(f"{options.prompt}{text}", file=data_output())


if __name__ == "__main__":
    cli.run("generate", sys.argv[1:])

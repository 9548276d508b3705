"""`cistron generate CHECKPOINT --prompt TEXT`: sample from a checkpoint of any layout, on one device.

Written to a file or a pipe, prompt and samples are as they are; on a terminal, control characters in them are shown as
text. With `--format fasta` each sample is a record, named by its number, prompt and seed.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence

from ..base import COUNT
from ..trainer.errors import ConfigError
from ..trainer.inference import NewText, Sampling, prompt_ids, samples
from ..trainer.processes import data_output
from . import cli
from .support import add_model_arguments, open_as_asked, whole_number

COLUMNS = 60  # of a line of FASTA
NO_LETTER = re.compile(r"[^A-Za-z*.-]")  # what no sequence of FASTA has


def main(argv: Sequence[str]) -> None:
    """Open the model, and print `--samples` continuations of each prompt."""
    parser = argparse.ArgumentParser(prog="cistron generate", description=__doc__)
    add_model_arguments(parser)
    parser.add_argument("--prompt", required=True, action="append", help="text to continue; may be given several times")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="stop here if no eos came (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="draw from the k most likely tokens (default: 50)")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the most likely tokens that have this probability together, of those of --top-k (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument(
        "--samples", type=whole_number(1, COUNT), default=1, help="of each prompt, with seeds seed, seed + 1, ... (default: 1)"
    )
    parser.add_argument("--format", choices=("text", "fasta"), default="text", help="what to write (default: text)")
    options = parser.parse_args(argv)
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    opened = open_as_asked(options)
    opened.refuse_encoder("generate")
    prompts = [prompt_ids(opened, prompt) for prompt in options.prompt]
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    if opened.seq_len is not None and longest > opened.seq_len:
        print(
            f"up to {longest} tokens, and the model was trained on rows of {opened.seq_len}: later ones are at positions that "
            "it has not seen",
            file=sys.stderr,
        )
    found = samples(opened, prompts, sampling, options.samples, options.batch_tokens)
    if options.format == "fasta":
        write_fasta(found, options.prompt)
        return
    for new in found:
        print(f"{options.prompt[new.prompt]}{new.text}", file=data_output())


def write_fasta(found: Iterable[NewText], prompts: Sequence[str]) -> None:
    """Print samples as FASTA: each begins with its prompt, where that is a sequence, which stderr tells.

    Raises:
        ConfigError: samples that are no sequences, after all others are written.
    """
    for number, prompt in enumerate(prompts):
        wrong = NO_LETTER.search(prompt)
        told = "its records begin with it" if wrong is None else f"{wrong[0]!r} is no letter, so its records are without it"
        print(f"prompt {number}: {told}", file=sys.stderr)
    left_out: list[str] = []
    for number, new in enumerate(found):
        prompt = "" if NO_LETTER.search(prompts[new.prompt]) else prompts[new.prompt]
        sequence = prompt + new.text
        wrong = NO_LETTER.search(sequence)
        if wrong or not sequence:
            left_out.append(f"sample-{number}: {'it is empty' if wrong is None else f'{wrong[0]!r} is no letter'}")
            continue
        ended = "eos" if new.ended else "length"
        print(
            f">sample-{number} prompt={new.prompt} seed={new.seed} prompt_letters={len(prompt)} "
            f"new_letters={len(new.text)} ended={ended}",
            *(sequence[start : start + COLUMNS] for start in range(0, len(sequence), COLUMNS)),
            sep="\n",
            file=data_output(),
        )
    if left_out:
        raise ConfigError(
            f"--format fasta: {len(left_out)} of {number + 1} samples are no sequences and were left out; "
            f"{left_out[0]}; --format text writes all"
        )


if __name__ == "__main__":
    cli.run("generate", sys.argv[1:])

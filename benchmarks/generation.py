"""Tokens per second of generation behind prompts of several lengths: with a key-value cache, and without one.

    OMP_NUM_THREADS=1 python benchmarks/generation.py --tokens 32 --repeats 5

Without: a pass over the whole row for each token, as before there was a cache. Both ways take the most likely of the
same tokens, which are compared; they alternate in one process. The prefill counts: a rate is of all that is between the
prompt and its last new token, and of the steps alone beside it. On a CPU seconds are those of its processor time, in
which other work on the machine has no part; threads add up.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from cistron.models.attention import DocumentMask
from cistron.models.config import PRESETS
from cistron.models.decoder import Decoder
from cistron.models.init import init_weights
from cistron.trainer.inference import Decoding, logits_of, make_rows

PAD = 1


def seconds(device: torch.device) -> float:
    """Return the time of a clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def without(model: Decoder, prompt: list[int], tokens: int, device: torch.device) -> tuple[list[int], float]:
    """Return new tokens, and the seconds of all but the first."""
    ids, started = list(prompt), 0.0
    mask = DocumentMask(eos_id=-1, pad_id=PAD, executor="varlen" if device.type == "cpu" else "sdpa")
    while len(ids) < len(prompt) + tokens:
        rows = make_rows([[np.array(ids)]], mask, device, 1)
        with logits_of(model, slice(len(ids) - 1, len(ids))):
            logits = model(rows.tokens, rows.positions, rows.mask)
        ids.append(int(logits[0, 0].argmax()))
        started = started or seconds(device)
    return ids[len(prompt) :], seconds(device) - started


@torch.no_grad()
def cached(model: Decoder, prompt: list[int], tokens: int, device: torch.device) -> tuple[list[int], float]:
    """Return what `without` does, by a cache of keys and values."""
    decoding = Decoding.begin(model, [prompt], PAD, device)
    new = [int(decoding.logits[0].argmax())]
    started = seconds(device)
    while len(new) < tokens:
        decoding = decoding.append(new[-1:])
        new.append(int(decoding.logits[0].argmax()))
    return new, seconds(device) - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="debug")
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    model = Decoder(PRESETS[options.preset]).to(device)
    init_weights(model, 0)
    draw = np.random.default_rng(0)
    ways: dict[str, Callable[[Decoder, list[int], int, torch.device], tuple[list[int], float]]] = {
        "with": cached,
        "without": without,
    }
    print("| prompt | without | with | times | steps alone, without | with | times |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for length in options.prompts:
        prompt = draw.integers(2, 256, length).tolist()
        whole: dict[str, list[float]] = {way: [] for way in ways}
        steps: dict[str, list[float]] = {way: [] for way in ways}
        found = {}
        for repeat in range(options.repeats + 1):  # the first warms up
            for way, run in ways.items():
                started = seconds(device)
                found[way], behind_first = run(model, prompt, options.tokens, device)
                if repeat:
                    whole[way].append(seconds(device) - started)
                    steps[way].append(behind_first)
            assert found["with"] == found["without"], "other tokens"
        cells: list[str] = []
        for taken, tokens in ((whole, options.tokens), (steps, options.tokens - 1)):
            slow, fast = (tokens / statistics.median(taken[way]) for way in ("without", "with"))
            cells += [f"{slow:,.1f}", f"{fast:,.1f}", f"{fast / slow:.1f}"]
        print(f"| {length:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

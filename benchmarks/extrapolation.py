"""Train short, test long, on a CPU: a small decoder is trained on 256 tokens and judged on up to 2,048 by every method.

    python benchmarks/extrapolation.py --folder outputs/extrapolation   # 8 minutes of training, 5 of evaluation
    python benchmarks/extrapolation.py --folder outputs/extrapolation --docs     # evaluates again, writes into docs/

A document draws n symbols and two permutations of them, P and Q; after x comes P(x) with probability 0.8, else Q(x).
Nothing but the document tells P: the more of it is seen, the more pairs are known, and with all of them the loss is
0.50 nats. So far context is worth something at every position. In every fourth training document a key of five digits
follows an `@`, and comes once more behind a second `@` at the end. A document fills a row of training and its eos comes
alone: one that always stood at position 255 would be expected from there on (RESULTS.md).

The rows of training grow: 64, 128, then 256 tokens, and with them the number of symbols. Without that, no head that
looks for earlier occurrences appears within 1,500 steps (the loss stays at 4.8 nats); with it one does between steps
600 and 1,300, by Muon; by AdamW at 3e-3 within 1,300. Checkpoints stay in the folder; what is trained already is not
trained again.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cistron.datasets.shards import ShardWriter, id_dtype
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tools import evaluate
from cistron.trainer.train import run

TRAINED = 256
ROWS = (64, 128, TRAINED)
STEPS = (900, 500, 800)
TOKENS_PER_STEP = (2048, 4096, 4096)
SYMBOLS = 128  # ids 128 to 255
KNOWN = (16, 32, 128)  # symbols that a document of a full row has at most
PASSKEYS = 0.25
DOCUMENTS = 64  # to evaluate on
DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- begin: benchmarks/extrapolation.py -->\n", "<!-- end: benchmarks/extrapolation.py -->\n"

TOML = """
[job]
dump_folder = "{folder}/rows-{rows}"
[model]
preset = "debug"
dim = 128
n_layers = 2
n_heads = 4
n_kv_heads = 4
head_dim = 32
hidden_dim = 256
tie_embeddings = true
rope = {{ theta = 10000.0, original_seq_len = {trained} }}
[[data.sources]]
name = "pairs"
format = "tokens"
paths = ["{folder}/data/rows-{rows}"]
[training]
seq_len = {rows}
local_batch_size = {batch}
global_batch_size = {batch}
steps = {steps}
mixed_precision_param = "float32"
[optimizer]
name = "Muon"
lr = 2e-2
weight_decay = 0.01
[lr_scheduler]
warmup_steps = 30
decay_ratio = {decay}
[checkpoint]
interval = 250
{start}
[metrics]
log_freq = 25
[[validation.sources]]
name = "long"
format = "tokens"
paths = ["{folder}/data/long"]
[eval.extrapolation]
passkey = {{ needle = "@{{key}}", query = "@" }}
"""


def chains(draw: np.random.Generator, documents: int, length: int, least: int, most: int) -> np.ndarray:
    """Documents of `length` symbols, each over `least` to `most` of them: uint8 [documents, length]."""
    several = draw.integers(least, most + 1, size=documents)
    beyond = np.arange(SYMBOLS) >= several[:, None]

    def permutations() -> np.ndarray:
        """Of 0 .. n - 1 for each document, int64 [documents, 128]: what lies beyond stays there."""
        return np.argsort(np.where(beyond, 1 + np.arange(SYMBOLS), draw.random((documents, SYMBOLS))), axis=1)

    after = np.stack([permutations(), permutations()])
    every = np.arange(documents)
    states = np.empty((documents, length), dtype=np.int64)
    states[:, 0] = draw.integers(several)
    rare = draw.random((documents, length)) >= 0.8
    for at in range(1, length):
        states[:, at] = after[rare[:, at].astype(int), every, states[:, at - 1]]
    names = np.argsort(draw.random((documents, SYMBOLS)), axis=1) + 256 - SYMBOLS
    return np.take_along_axis(names, states, axis=1).astype(np.uint8)


def hide_key(draw: np.random.Generator, document: np.ndarray) -> np.ndarray:
    """The document with a key anywhere, and once more at its end; as long as before.

    One in twelve stands at the very beginning, one in twelve right before the end: no distance is worth learning by
    heart.
    """
    key = np.frombuffer(b"@", dtype=np.uint8).tolist() + draw.choice(np.frombuffer(b"0123456789", np.uint8), size=5).tolist()
    rest = document[: len(document) - 2 * len(key)]
    at = round(np.clip(draw.uniform(-0.1, 1.1), 0, 1) * len(rest))
    return np.concatenate([np.insert(rest, at, key), key]).astype(np.uint8)


def write_data(folder: Path, seed: int, tokens: int, rows: int, symbols: tuple[int, int], *, plain: bool) -> None:
    """Token shards of documents that are a row long without their eos; unless `plain`, some have keys."""
    if folder.exists():
        return
    draw = np.random.default_rng(seed)
    writer = ShardWriter(folder, "part", ByteTokenizer(), id_dtype(511))
    texts = chains(draw, tokens // rows, rows, *symbols)
    kept = [text if plain or draw.random() >= PASSKEYS else hide_key(draw, text) for text in texts]
    ids = np.pad(np.stack(kept), ((0, 0), (0, 1)), constant_values=ByteTokenizer().eos_id)
    writer.write(ids.ravel(), np.arange(1, len(ids) + 1) * (rows + 1), None)
    writer.finish([])


def train(folder: Path, steps: tuple[int, ...]) -> Path:
    """Three jobs, each from the last one's weights; returns the folder of the last one's checkpoints."""
    start, checkpoints = "", folder
    write_data(folder / "data" / "long", 1, DOCUMENTS * 8 * TRAINED, 8 * TRAINED, (SYMBOLS, SYMBOLS), plain=True)
    for number, (rows, count, tokens, known) in enumerate(zip(ROWS, steps, TOKENS_PER_STEP, KNOWN, strict=True)):
        write_data(folder / "data" / f"rows-{rows}", 2 + number, count * tokens, rows, (4, known), plain=False)
        job = folder / f"rows-{rows}.toml"
        decay = 0.5 if rows == TRAINED else 0.0
        places = {"folder": folder.resolve(), "rows": rows, "trained": TRAINED, "batch": tokens // rows}
        job.write_text(TOML.format(**places, steps=count, decay=decay, start=start))
        checkpoints = folder / f"rows-{rows}" / "checkpoint"
        if not (checkpoints / f"step-{count}").exists():
            run([str(job)])
        start = f'initial_load_path = "{checkpoints.resolve()}/step-{count}"'
    return checkpoints


def claims(results: list[dict[str, Any]]) -> list[tuple[str, bool, str]]:
    """What the literature says, whether it came out, and the numbers."""
    last = {(r["method"], r["length"] // TRAINED): r["last_loss"] for r in results}
    keys = {(r["method"], r["length"] // TRAINED): np.mean(list(r["passkey"].values())) for r in results}
    order = ["rerope", "yarn", "ntk_by_parts", "ntk", "trained"]
    at8 = [last[method, 8] for method in order]
    rerope, sliding = ([last[method, times] for times in (1, 2, 4, 8)] for method in ("rerope", "sliding"))

    def said(values: list[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values)

    return [
        (f"8x: {' < '.join(order)}", at8 == sorted(at8), said(at8)),
        (
            "linear without training fails: 1 nat above 1x at 2x",
            last["linear", 2] > last["trained", 1] + 1,
            said([last["trained", 1], last["linear", 2]]),
        ),
        ("sliding is flat from 2x on, to 0.1 nats", max(sliding[1:]) - min(sliding[1:]) < 0.1, said(sliding)),
        ("sliding is 1 nat worse than rerope at 8x", sliding[-1] > rerope[-1] + 1, said([sliding[-1], rerope[-1]])),
        ("rerope falls with every length", rerope == sorted(set(rerope), reverse=True), said(rerope)),
        ("pass keys at 4x: rerope finds all", keys["rerope", 4] == 1, f"{keys['rerope', 4]:.2f}"),
        ("pass keys at 4x: trained finds at most 0.12", keys["trained", 4] <= 0.12, f"{keys['trained', 4]:.2f}"),
    ]


def markdown(results: list[dict[str, Any]], found: list[tuple[str, bool, str]]) -> str:
    """The table of all methods, and that of the claims."""
    times = (1, 2, 4, 8)
    columns = [f"last 64, {n}x" for n in times] + [f"keys, {n}x" for n in times]
    lines = [f"| method | {' | '.join(columns)} | settings at 8x |", "|---|" + "---|" * 9]
    for method in dict.fromkeys(result["method"] for result in results):
        rows = sorted((r for r in results if r["method"] == method), key=lambda r: r["length"])
        cells = [f"{r['last_loss']:.3f}" for r in rows] + [f"{np.mean(list(r['passkey'].values())):.2f}" for r in rows]
        lines.append(f"| `{method}` | {' | '.join(cells)} | {rows[-1]['settings']} |")
    lines += ["", "| expected | came out | numbers |", "|---|---|---|"]
    lines += [f"| {what} | {'yes' if so else '**no**'} | {numbers} |" for what, so, numbers in found]
    lines += ["", "![Loss by length, loss by position, pass keys by depth and length](length_extrapolation.png)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is not trained yet, evaluate, compare with what is expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of data, runs and results")
    parser.add_argument("--steps", type=int, nargs=3, default=STEPS, help="with rows of 64, 128 and 256 tokens")
    parser.add_argument("--documents", type=int, default=32, help=f"of 2,048 tokens, to evaluate on, at most {DOCUMENTS}")
    parser.add_argument("--passkey-samples", type=int, default=10, help="for each depth and length")
    parser.add_argument("--docs", action="store_true", help="write table and figure into docs/length_extrapolation.md")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # training in small matrices gains nothing from more
    checkpoints = train(options.folder, tuple(options.steps))
    output = options.folder / "evaluation"
    torch.set_num_threads(os.cpu_count() or 1)
    asked = ["--documents", str(options.documents), "--passkey-samples", str(options.passkey_samples)]
    evaluate.main([str(checkpoints), "--extrapolate", "--output", str(output), *asked])
    results = json.loads((output / "extrapolation.json").read_text())["results"]
    text = markdown(results, claims(results))
    print(text)
    if options.docs:
        page = DOCS / "length_extrapolation.md"
        before, rest = page.read_text().split(BEGIN)
        page.write_text(before + BEGIN + text + END + rest.split(END)[1])
        shutil.copy(output / "extrapolation.png", DOCS / "length_extrapolation.png")


if __name__ == "__main__":
    main()

"""Training speed beside torchtitan, Hugging Face Trainer and a bare loop: the same model, weights, rows and optimizer.

    python benchmarks/train_speed.py --peers-python /path/to/venv/bin/python
    python benchmarks/train_speed.py --device cuda --model llama3_1b --peers-python ...
    python benchmarks/train_speed.py --device cuda --model llama3_8b --layers 12 --activation-checkpoint full ...

Every contender lives in a process of its own, with its own libraries, and takes steps on command: two of one, two of
the next, `--rounds` times in changing order, of which the second of each pair counts (the first finds the caches full
of another's weights). All start from the same weights and train on the same packed rows, with attention kept inside
documents and AdamW at a constant rate, so that equal numbers of parameters and equal losses, first and last, show that
the work is the same. Printed are medians, their ranges, and ratios to torchtitan.

`--apart` runs one contender after another instead, since a GPU rarely holds four such models at once. On CUDA the rate
of a large bfloat16 matrix product, measured before and after, tells what share of it the training reaches: FLOPs are
counted as 6 per parameter that multiplies and token, and for attention over documents alone (and, as published numbers
do, over whole rows).

The other trainers (`pip install 'cistron[bench]'`) may be in another environment. One that does not start is left out,
with a message; where `--only` names it, the status is 1.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import torch
from cistron.models.config import DecoderConfig
from cistron.models.decoder import Decoder
from cistron.models.huggingface import hf_names
from cistron.models.init import init_weights
from cistron.trainer.build import training_mask
from cistron.trainer.config import load_config
from cistron.trainer.estimates import row_flops
from cistron.trainer.processes import Layout
from cistron.trainer.start import open_data, verify
from corpora import python_documents, text_lengths
from gpu_summary import Numbers

HERE = Path(__file__).resolve().parent
CONTENDERS = {
    "torchtitan": ["train_torchtitan.py"],
    "cistron": ["train_contenders.py", "cistron"],
    "bare loop": ["train_contenders.py", "bare"],
    "Hugging Face Trainer": ["train_contenders.py", "hugging_face"],
}
PEERS = ("torchtitan", "Hugging Face Trainer")
LR = 3e-4


@dataclass
class Contender:
    """A process that takes steps on command, and what it reported.

    Attributes:
        name: in the table.
        process: its stdin takes a line per step, its stdout answers with a line of JSON.
        seconds: of the steps that count.
        losses: of every step.
        parameters: of its model.
        memory: its peak, in bytes.
    """

    name: str
    process: subprocess.Popen[str]
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    parameters: int = 0
    memory: float = 0.0

    def answer(self) -> dict[str, Any] | None:
        """The next report; None when the process has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def step(self, counts: bool) -> None:
        """Take one step. Raises SystemExit when the process ends in it."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        report = self.answer()
        if report is None:
            sys.exit(f"{self.name} ended in step {len(self.losses) + 1}")
        self.losses.append(report["loss"])
        self.parameters, self.memory = report["parameters"], report["memory"]
        if counts:
            self.seconds.append(report["seconds"])


class LeftOut(Exception):
    """Why a contender does not start."""


def start(name: str, python: str, folder: Path) -> Contender:
    """Start a contender and wait until its model stands. Raises LeftOut with its last words when it does not."""
    script, *arguments = CONTENDERS[name]
    log = folder / f"{name}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [python, str(HERE / script), *arguments, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    contender = Contender(name, process)
    if contender.answer() is None:
        raise LeftOut((log.read_text().strip().splitlines() or ["it ended without a message"])[-1])
    return contender


def finish(contender: Contender) -> None:
    """Close its stdin, upon which it ends."""
    contender.process.communicate()


def write_corpus(folder: Path, tokens: int) -> None:
    """Write jsonl of Python sources in documents of a web text's lengths, as bytes."""
    lengths = iter(text_lengths(-(-tokens // 800)).tolist())
    with (folder / "corpus.jsonl").open("w") as file:
        for document in python_documents():
            while document and (length := next(lengths, 0)):
                file.write(json.dumps({"text": document[:length]}) + "\n")
                document = document[length:]


def write_job(folder: Path, options: argparse.Namespace) -> DecoderConfig:
    """Write the job, the rows and the weights that all contenders read; returns the model's shape."""
    steps = options.warmup + 2 * options.rounds  # as many batches, so that none is read twice
    write_corpus(folder, 2 * steps * options.rows * options.seq_len)
    job = {
        "model": {"preset": options.model, **({"n_layers": options.layers} if options.layers else {})},
        # one lane: the corpus of a short run has too few parts for more
        "data": {"lanes": 1, "sources": [{"name": "text", "format": "jsonl", "paths": [str(folder / "corpus.jsonl")]}]},
        "training": {
            "seq_len": options.seq_len,
            "local_batch_size": options.rows,
            "steps": 1_000_000,
            "mixed_precision_param": options.dtype,
        },
        "optimizer": {"lr": LR, "weight_decay": 0.0},
        "lr_scheduler": {"warmup_steps": 0, "decay_ratio": 0.0},
        "compile": {"enable": options.compile},
        "activation_checkpoint": {"mode": options.activation_checkpoint},
        "checkpoint": {"enable": False},
    }
    if options.model != "debug":
        job["model"]["vocab_size"] = 128_256  # the tokenizer's are bytes; the table is to have its real size
    (folder / "job.toml").write_text(tomli_w.dumps(job))
    config, _ = load_config(["--config", str(folder / "job.toml")])
    layout = Layout.resolve(config)
    tokenizer, shape = verify(config, layout)
    mask = training_mask(config, tokenizer, torch.device("cpu"))
    feed = open_data(config, layout, tokenizer, mask, shape.vocab_size, batch_size=options.rows).begun(mask)
    assert feed.first
    batches = [feed.first, *(feed.loader.next() for _ in range(steps - 1))]
    feed.loader.close()
    keys = ("tokens", "labels", "positions", "sequence_ids")
    torch.save([{key: getattr(batch, key) for key in keys} for batch in batches], folder / "rows.pt")
    model = Decoder(shape)
    init_weights(model, seed=0)
    torch.save(model.state_dict(), folder / "weights.pt")
    told = ("device", "rows", "seq_len", "dtype", "compile", "activation_checkpoint")
    described = {key: getattr(options, key) for key in told} | {"lr": LR, "shape": shape.model_dump()}
    (folder / "job.json").write_text(json.dumps({**described, "hugging_face_names": hf_names(shape)}))
    return shape


def interleave(contenders: list[Contender], rounds: int, warmup: int) -> None:
    """Two steps of each in every round, the second of which counts, in an order that goes round too."""
    for contender in contenders:
        for _ in range(warmup):
            contender.step(counts=False)
    for repeat in range(rounds):
        shift = repeat % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            contender.step(counts=False)
            contender.step(counts=True)


def wait_for(device: str) -> None:
    """Let the device finish what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str = "cuda", side: int = 8192) -> float:
    """FLOP/s of products of square bfloat16 matrices on a device: the best of 6 runs of 20."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(6):
        wait_for(device)
        begun = time.perf_counter()
        for _ in range(20):
            a @ b
        wait_for(device)
        best = max(best, 20 * 2 * side**3 / (time.perf_counter() - begun))
    return best


def flops_per_step(shape: DecoderConfig, rows: list[dict[str, torch.Tensor]]) -> tuple[float, float]:
    """FLOPs of a step, attention counted over documents (causal pairs alone), and over whole rows as PaLM does.

    A query and a key cost 2·head_dim multiplications and additions for the score and as many for the value: 4·head_dim
    FLOPs forward and twice that backward.
    """
    positions = torch.stack([batch["positions"] for batch in rows])
    tokens, seq_len = positions[0].numel(), positions.shape[-1]
    without_context_parallel = row_flops(shape, seq_len, tokens)
    per_pair = 12 * shape.n_layers * shape.n_heads * shape.head_dim
    pairs = float((positions + 1).sum()) / len(rows)  # a query sees what stands before it in its document, and itself
    return without_context_parallel - per_pair * tokens * seq_len + per_pair * pairs, without_context_parallel


def report(contenders: list[Contender], options: argparse.Namespace, folder: Path, shape: DecoderConfig, rate: float) -> None:
    """Print the table of medians, ranges and ratios."""
    rows = torch.load(folder / "rows.pt")
    by_documents, by_rows = flops_per_step(shape, rows)
    tokens = options.rows * options.seq_len
    documents = sum(int((batch["sequence_ids"].amax(1) + 1).sum()) for batch in rows) / (len(rows) * options.rows)
    used = sum(float((batch["sequence_ids"] >= 0).float().mean()) for batch in rows) / len(rows)
    print(f"{shape.parameter_count():,} parameters; {options.rows} rows x {options.seq_len}, {documents:.1f} documents per row")
    print(f"{used:.1%} of the positions hold tokens; tokens/s count all positions")
    if rate:
        print(f"matmul {rate / 1e12:.0f} TFLOP/s; {by_documents / 1e12:.1f} TFLOP a step ({by_rows / 1e12:.1f} by whole rows)")
    base = next((statistics.median(c.seconds) for c in contenders if c.name == "torchtitan"), math.nan)
    print(f"{'':22s} {'ms/step':>9s} {'range':>17s} {'tokens/s':>10s} {'to titan':>8s} {'memory':>10s}  losses, first and last")
    for c in contenders:
        seconds = statistics.median(c.seconds)
        share = f"  {by_documents / seconds / rate:.1%} of matmul ({by_rows / seconds / rate:.1%})" if rate else ""
        spread = f"{min(c.seconds) * 1e3:8.1f}-{max(c.seconds) * 1e3:8.1f}"
        print(
            f"{c.name:22s} {seconds * 1e3:9.1f} {spread} {tokens / seconds:10,.0f} {base / seconds:7.2f}x "
            f"{c.memory / 2**30:6.2f} GiB  {c.losses[0]:.6f} {c.losses[-1]:.6f}  {c.parameters:,} parameters{share}"
        )
    bare = next((statistics.median(c.seconds) for c in contenders if c.name == "bare loop"), None)
    ours = next((statistics.median(c.seconds) for c in contenders if c.name == "cistron"), None)
    if bare and ours:
        print(f"cistron / bare loop = {ours / bare:.3f}")
    if options.numbers:
        keep(contenders, options.numbers, tokens, by_documents / rate if rate else math.nan, base)


def keep(contenders: list[Contender], path: Path, tokens: int, seconds_of_products: float, base: float) -> None:
    """Append speeds, shares of the matmul rate, and whether all did the same work, for the drill's table."""
    numbers = Numbers(path)
    for c in contenders:
        seconds = statistics.median(c.seconds)
        numbers(c.name, tokens / seconds, "tokens/s")
        if not math.isnan(seconds_of_products):
            numbers(f"{c.name}'s share of the matmul rate", seconds_of_products / seconds)
        if c.name != "torchtitan" and not math.isnan(base):
            goal = "" if base / seconds >= 1.15 or c.name != "cistron" else "the goal is 1.15"
            numbers(f"{c.name} / torchtitan", base / seconds, goal=goal)
    first, last = [c.losses[0] for c in contenders], [c.losses[-1] for c in contenders]
    apart = max(max(each) / min(each) - 1 for each in (first, last))
    numbers("losses apart", apart, wrong="the work is not the same" if not apart < 0.02 else "")


def main() -> None:
    """Prepare what all read, run the contenders, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--model", default="debug", help="preset, of Llama's kind (default: debug)")
    parser.add_argument("--layers", type=int, help="fewer blocks than the preset has")
    parser.add_argument("--seq-len", type=int, help="tokens per row (default: 512 on a CPU, 8192 on CUDA)")
    parser.add_argument("--rows", type=int, help="rows per step (default: 8 on a CPU, 2 on CUDA)")
    parser.add_argument("--activation-checkpoint", choices=["none", "full"], default="none", help="of all (default: none)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="of all (default: on CUDA only)")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of steps of each (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before that (default: 3)")
    parser.add_argument("--apart", action=argparse.BooleanOptionalAction, help="one after another (default: on CUDA only)")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), help="which (default: all)")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has the others (default: this one)")
    parser.add_argument("--numbers", type=Path, help="append the numbers to this file as JSON lines")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.seq_len = options.seq_len or (8192 if on_gpu else 512)
    options.rows = options.rows or (2 if on_gpu else 8)
    options.compile = on_gpu if options.compile is None else options.compile
    options.apart = on_gpu if options.apart is None else options.apart
    options.dtype = "bfloat16" if on_gpu else "float32"

    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {device}", flush=True)
    rate = matmul_rate() if on_gpu else 0.0
    contenders: list[Contender] = []
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = write_job(folder, options)
        for contender_name in options.only or CONTENDERS:
            python = options.peers_python if contender_name in PEERS else sys.executable
            try:
                contender = start(contender_name, python, folder)
            except LeftOut as reason:
                left_out[contender_name] = f"left out: {reason}"
                print(f"{contender_name} {left_out[contender_name]}", flush=True)
                continue
            contenders.append(contender)
            if options.apart:
                interleave([contender], options.rounds, options.warmup)
                finish(contender)
        if options.numbers and options.only:
            for contender_name, why in left_out.items():
                Numbers(options.numbers)(contender_name, None, wrong=why)
        if not contenders:
            sys.exit("there is nothing to measure")
        if not options.apart:
            interleave(contenders, options.rounds, options.warmup)
            for contender in contenders:
                finish(contender)
        if on_gpu:
            rate = max(rate, matmul_rate())
        report(contenders, options, folder, shape, rate)
    if options.only and left_out:
        sys.exit(f"left out: {', '.join(left_out)}")


if __name__ == "__main__":
    main()

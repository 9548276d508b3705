"""The parts of `gpu.sh` that need code: each is a process, measures one thing, and appends numbers as it finds them.

    python benchmarks/gpu_drill.py rates --device cuda --out OUT --work WORK

`--device cpu` runs the same code with small sizes; what is CUDA's alone says so in its numbers. `OUT` receives
`<part>.jsonl`; `WORK` holds runs and checkpoints, and all parts share it.
"""

import argparse
import gzip
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cistron.models import loss as loss_head
from cistron.models.attention import DocumentMask, attend_in_regions
from cistron.tools import embed, generate
from cistron.trainer import train as training
from cistron.trainer.config import load_config
from cistron.trainer.estimates import estimate
from cistron.trainer.prefetch import Prefetcher
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.start import verify
from gpu_summary import Numbers, value_of
from safetensors.torch import load_file
from train_speed import matmul_rate, wait_for

ROOT = Path(__file__).resolve().parents[1]
# in place of a shipped model's shape where there is no GPU: the same TOML, and some seconds instead of hours
SMALL = {
    "model.dim": 64,
    "model.n_layers": 2,
    "model.n_heads": 4,
    "model.n_kv_heads": 2,
    "model.head_dim": 16,
    "model.hidden_dim": 128,
    "model.vocab_size": 512,
    "training.seq_len": 256,
    "compile.enable": False,
}
GOAL = 0.65  # of the measured matmul rate, by FLOPs of whole rows
NO_CUDA = "CUDA only"


@dataclass(frozen=True)
class Drill:
    """What a part is told.

    Attributes:
        part: its name.
        device: "cuda" or "cpu".
        out: folder of numbers.
        work: folder of runs.
        numbers: where to say what was found.
    """

    part: str
    device: str
    out: Path
    work: Path
    numbers: Numbers

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU; else sizes are small."""
        return self.device == "cuda"

    def arguments(self, config: str, run: str, **options: object) -> list[str]:
        """Return the command line of a job: a shipped TOML, its run's folder, and options with _ for the first dot."""
        told = {"job.dump_folder": self.work / run, "metrics.enable_tensorboard": False, "checkpoint.enable": False}
        told |= {key.replace("_", ".", 1): value for key, value in options.items()}
        if not self.on_gpu:
            told |= SMALL | {key: value for key, value in told.items() if key.startswith("training.")}
        pairs = [part for key, value in told.items() for part in (f"--{key}", str(value))]
        return ["--config", str(ROOT / "train_configs" / f"{config}.toml"), *pairs]


def milliseconds(device: str, repeats: int, work: Callable[[], object]) -> float:
    """Return the median time of a call in ms, after two that do not count."""
    seconds = []
    for number in range(repeats + 2):
        wait_for(device)
        begun = time.perf_counter()
        work()
        wait_for(device)
        if number > 1:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1e3


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the norm of the difference as a share of the norm of what is right."""
    truth = truth.to(torch.float32)
    return float((value.to(torch.float32) - truth).norm() / truth.norm())


# ---- parts


def rates(drill: Drill) -> None:
    """The ceilings that percentages are of: products of bfloat16 matrices, and copies within memory."""
    if drill.on_gpu:
        drill.numbers("device", torch.cuda.get_device_name())
        drill.numbers("CUDA", str(torch.version.cuda))
    drill.numbers("torch", torch.__version__)
    rate = matmul_rate(drill.device, 8192 if drill.on_gpu else 256)
    drill.numbers(
        "matmul", rate / 1e12, "TFLOP/s", wrong="" if rate > 100e12 or not drill.on_gpu else "an H200 has 989 nominally"
    )
    size = 2**32 if drill.on_gpu else 2**24
    a = torch.empty(size, dtype=torch.uint8, device=drill.device)
    b = torch.empty_like(a)
    drill.numbers("copy", 2 * size / milliseconds(drill.device, 10, lambda: b.copy_(a)) / 1e9, "TB/s")
    if drill.on_gpu:
        host = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
        part = a[: 2**30]
        drill.numbers("to host", 2**30 / milliseconds("cuda", 5, lambda: host.copy_(part)) / 1e6, "GB/s")


def head(drill: Drill) -> None:
    """The loss head: losses and gradients against `F.cross_entropy` in float32, and its time by the size of a chunk."""
    vocab, dim, tokens, some = (128_256, 4096, 16_384, 2048) if drill.on_gpu else (512, 64, 512, 256)
    dtype = torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, dim, generator=generator).to(drill.device, dtype).requires_grad_()
    weight = (torch.randn(vocab, dim, generator=generator) / dim**0.5).to(drill.device, dtype).requires_grad_()
    labels = torch.randint(vocab, (1, tokens), generator=generator).to(drill.device)

    few, few_labels = hidden[:, :some].detach().requires_grad_(), labels[:, :some]
    losses = loss_head.linear_cross_entropy(few, weight, few_labels)
    ours = torch.autograd.grad(losses.sum(), (few, weight))
    exact = [t.detach().float().requires_grad_() for t in (few, weight)]
    truth = F.cross_entropy((exact[0] @ exact[1].T)[0], few_labels[0], reduction="none")
    theirs = torch.autograd.grad(truth.sum(), exact)
    for name, found, right, limit in (
        ("losses", losses[0], truth, 2**-10),
        ("gradient of hidden", ours[0], theirs[0], 2**-6),
        ("gradient of the weight", ours[1], theirs[1], 2**-6),
    ):
        apart = error(found, right)
        drill.numbers(f"{name} apart", apart, wrong="" if apart < limit else f"above {limit}")
    del exact, truth, theirs, ours, losses

    usual = loss_head.CHUNK_LOGITS[drill.device]
    sizes = [2**26, 2**27, 2**28, 2**29] if drill.on_gpu else [2**14, 2**16, 2**18]
    for compiled in (False, True) if drill.on_gpu else (False,):
        for size in sizes:
            loss_head.CHUNK_LOGITS[drill.device] = size

            def step(compiled: bool = compiled) -> None:
                head_losses = loss_head.linear_cross_entropy(hidden, weight, labels, compiled=compiled)
                torch.autograd.grad(head_losses.sum(), (hidden, weight))

            took = milliseconds(drill.device, 5, step)
            how = "compiled" if compiled else "eager"
            drill.numbers(f"{how}, chunk 2^{size.bit_length() - 1}", took, "ms")
            drill.numbers(f"{how}, chunk 2^{size.bit_length() - 1}", 6 * tokens * vocab * dim / took / 1e9, "TFLOP/s")
    loss_head.CHUNK_LOGITS[drill.device] = usual


class Watched(training.Trainer):
    """A trainer that is told, before a step without records, to name every wait of the host for the device."""

    mode = "default"

    def fetch(self) -> Any:
        """Set the mode for the step that begins here: the first compiles, and steps with records read numbers."""
        step = self.progress.step + 1
        quiet = step > 2 and not self.log.due(step)
        if self.world.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(self.mode if quiet else "default")
        return super().fetch()


def waits(drill: Drill) -> None:
    """Host waits: none in steps whose numbers nobody reads; first all of them are named, then the first one raises."""
    found: dict[str, int] = defaultdict(int)

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            place = next(f for f in reversed(traceback.extract_stack()[:-1]) if "warnings" not in f.filename)
            found[f"{Path(place.filename).name}:{place.lineno} {place.line}"] += 1

    options = {"model_n_layers": 4, "training_global_batch_size": 4, "training_steps": 9, "metrics_log_freq": 100}
    config, _ = load_config(drill.arguments("llama3_1b", "waits", **options))
    world = join(config)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        trainer = Watched(config, world, StopRequest())
        trainer.mode = "warn"
        trainer.train()
        trainer.close()
    torch.cuda.set_sync_debug_mode("default") if drill.on_gpu else None
    note_cuda = "" if drill.on_gpu else f"{NO_CUDA}: the trainer ran, no wait can be seen on a CPU"
    drill.numbers("waits in 6 quiet steps", sum(found.values()), note_cuda, wrong="see the log" if found else "")
    for place, times in found.items():
        drill.numbers(f"wait at {place}", times)
    if drill.on_gpu and not found:
        config, _ = load_config(drill.arguments("llama3_1b", "waits_error", **options))
        trainer = Watched(config, world, StopRequest())
        trainer.mode = "error"
        trainer.train()
        trainer.close()
        drill.numbers('steps under set_sync_debug_mode("error")', 6)


def prefetch(drill: Drill) -> None:
    """Losses of many small micro-batches with and without the side stream must be equal bit for bit."""
    losses = {}
    steps, rows = (40, 64) if drill.on_gpu else (3, 8)
    shape = {"training_seq_len": 128, "training_local_batch_size": rows, "training_global_batch_size": 4 * rows}
    options = {"model_n_layers": 2, "training_steps": steps, "metrics_log_freq": 1, **shape}
    world = None
    for name in ("side stream", "one stream"):
        config, _ = load_config(drill.arguments("llama3_1b", name.replace(" ", "_"), **options))
        world = world or join(config)
        trainer = training.Trainer(config, world, StopRequest())
        if name == "one stream":
            trainer.prefetch = Prefetcher(trainer.stage, torch.device("cpu"))  # moves a batch when it is needed
        begun = time.perf_counter()
        trainer.train()
        trainer.close()
        drill.numbers(name, time.perf_counter() - begun, "s")
        losses[name] = [(r["loss"], r["grad_norm"]) for r in records(drill.work / name.replace(" ", "_"))]
    same = losses["side stream"] == losses["one stream"]
    where = "bit for bit" if drill.on_gpu else f"bit for bit ({NO_CUDA}: a CPU has no side stream, so both are one)"
    drill.numbers(
        "steps equal", sum(map(tuple.__eq__, *losses.values())), f"of {steps} {where}", wrong="" if same else "not equal"
    )


@dataclass(frozen=True)
class Run:
    """A training run whose speed is measured.

    Attributes:
        config: a shipped TOML.
        executor: of attention on CUDA.
        options: of the job on every device.
        profile: whether the last step is recorded and its kernels listed.
        beside: run whose last loss must be nearly the same; empty: none.
    """

    config: str
    executor: str
    options: dict[str, object]
    profile: bool = False
    beside: str = ""


NARROW = {"model_n_layers": 12, "validation_enable": False}
RUNS = {
    "speed_1b_flex": Run("llama3_1b", "flex", {}, profile=True),
    "speed_1b_varlen": Run("llama3_1b", "varlen", {}, beside="speed_1b_flex"),
    "speed_8b_flex": Run("llama3_8b", "flex", NARROW),
    "speed_8b_varlen": Run("llama3_8b", "varlen", NARROW, beside="speed_8b_flex"),
    "float8": Run("llama3_1b", "flex", {"float8_enable": True}, beside="speed_1b_flex"),
}


def speed(drill: Drill) -> None:
    """Tokens per second, utilisation and memory of a shipped job; the loss beside another run's."""
    run = RUNS[drill.part]
    options = dict(run.options) | {"training_global_batch_size": 4, "training_steps": 12, "metrics_log_freq": 4}
    if run.profile:
        options |= {"profiling_enable_profiling": True, "profiling_profile_freq": 12}
    if drill.on_gpu:
        options["model_attention.executor"] = run.executor
    else:
        options["model_attention.executor"] = "varlen" if run.executor == "varlen" else "sdpa"
        if "float8_enable" in options:
            options["float8_emulate"] = True
        drill.numbers("executor", options["model_attention.executor"], f'({NO_CUDA}: "flex"; small shape, not compiled)')
    argv = drill.arguments(run.config, drill.part, **options)
    training.run(argv)

    found = records(drill.work / drill.part)
    warm, last = found[-2], found[-1]  # the last four steps may be recorded, which takes time
    for record in (warm,) if run.profile else (warm, last):
        drill.numbers(f"steps to {record['step']}", float(record["tokens_per_second"]), "tokens/s")
    drill.numbers("model TFLOP/s", float(warm["tflops"]))
    rate = value_of(drill.out / "rates.jsonl", "matmul")
    if rate and drill.on_gpu:
        share = warm["tflops"] / rate
        drill.numbers("share of the matmul rate, whole rows", share, goal="" if share >= GOAL else f"the goal is {GOAL}")
    for name in ("mfu", "mfu_documents", "data_wait", "documents_per_row"):
        drill.numbers(name, warm[name])
    loss = last["loss"]
    finite = loss is not None and math.isfinite(loss)
    drill.numbers("loss", loss, wrong="" if finite else "not finite")
    beside = value_of(drill.out / f"{run.beside}.jsonl", "loss") if run.beside else None
    if beside and finite:
        apart = abs(loss / beside - 1)
        drill.numbers(f"loss apart from {run.beside}", apart, wrong="" if apart < 0.02 else "above 2 %")
    graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    drill.numbers("graphs compiled", graphs)
    memory(drill, argv, last)
    if run.profile:
        kernels(drill)


def memory(drill: Drill, argv: list[str], record: dict[str, Any]) -> None:
    """Compare the peak of tensors with the estimate of `cistron check`."""
    config, _ = load_config(argv)
    executor = config.model.attention.executor
    world = join(config)
    _, decoder = verify(config, world.layout)
    peak = max(moment.size for moment in estimate(config, decoder, world.layout, executor, drill.device)) / 2**30
    drill.numbers("memory estimated", peak, "GiB")
    measured = record["memory_allocated_gib"]
    if measured is None:
        drill.numbers("memory of tensors", None, f"({NO_CUDA})")
        return
    wrong = "" if 0.85 < peak / measured < 1.15 else "15 % or more off the estimate"
    drill.numbers("memory of tensors", float(measured), "GiB", wrong=wrong)
    drill.numbers("memory reserved", float(record["memory_gib"]), "GiB")


KINDS = (  # of kernels, by what their names contain; the first that matches counts
    ("attention", ("flex_attention", "flash_fwd", "flash_bwd", "fmha", "tem_fused")),
    ("products", ("nvjet", "gemm", "cutlass", "xmma", "cublas", "::mm", "::addmm")),
    ("optimizer", ("multi_tensor", "adam", "foreach", "lpnorm")),
    ("copies", ("memcpy", "memset", "copy")),
    ("fused by Inductor", ("triton_",)),
    ("communication", ("nccl",)),
)


def kernels(drill: Drill) -> None:
    """List what the recorded step's time went into, and how long the device had nothing to do."""
    trace = next((drill.work / drill.part).glob("profile_traces/step-*/rank0.json.gz"))
    with gzip.open(trace, "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if drill.on_gpu else ("cpu_op",)
    events = [event for event in events if event.get("cat") in kinds]
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_name[event["name"]].append(event["dur"])
    rows = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    lines = [f"{sum(times) / 1e3:10.3f} ms {len(times):6d} x  {name[:150]}" for name, times in rows]
    (drill.out / "kernels.txt").write_text("\n".join(lines) + "\n")
    if not drill.on_gpu:
        drill.numbers("operators recorded", len(events), f"({NO_CUDA}: kernels; see kernels.txt)")
        return
    shares: dict[str, float] = defaultdict(float)
    for name, times in rows:
        kind = next((kind for kind, parts in KINDS if any(part in name.lower() for part in parts)), "the rest")
        shares[kind] += sum(times)
    begin, end = min(e["ts"] for e in events), max(e["ts"] + e["dur"] for e in events)
    drill.numbers("kernels in a step", len(events))
    drill.numbers("device idle", 1 - covered((e["ts"], e["ts"] + e["dur"]) for e in events) / (end - begin))
    for kind, took in sorted(shares.items(), key=lambda item: -item[1]):
        drill.numbers(f"{kind} in a step", took / 1e3, "ms")


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, until = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def padding(drill: Drill) -> None:
    """What room for more documents than there are, and too high a bound of their length, cost varlen attention."""
    heads, kv_heads, width, rows, seq_len = (32, 8, 64, 2, 8192) if drill.on_gpu else (4, 2, 16, 2, 256)
    dtype = torch.bfloat16 if drill.on_gpu else torch.float32
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(rows, seq_len, generator=generator) < (1 / 870 if drill.on_gpu else 1 / 40)
    ids = starts.cumsum(1).int()
    ids -= ids[:, :1].clone()
    shape = ((heads, width), (kv_heads, width), (kv_heads, width))
    q, k, v = (torch.randn(rows, n, seq_len, d, generator=generator).to(drill.device, dtype).requires_grad_() for n, d in shape)
    mask = DocumentMask(eos_id=0, pad_id=1, executor="varlen").build(ids, drill.device)
    every = torch.unique(mask.cu_seqlens)
    segments, longest = len(every) - 1, int(every.diff().max())
    drill.numbers("documents", segments, f"longest {longest}, in {rows} rows of {seq_len}")
    if not drill.on_gpu:
        drill.numbers("kernel", "document by document", f"({NO_CUDA}: flash attention)")
    truth = None
    powers = [1 << (number - 1).bit_length() for number in (segments, longest)]  # what a mask has room for
    for room in (segments, powers[0], 1024):
        for bound in (longest, powers[1], seq_len):
            offsets = torch.full((max(room, segments) + 1,), rows * seq_len, dtype=torch.int32, device=drill.device)
            offsets[: segments + 1] = every
            sized = mask._replace(cu_seqlens=offsets, longest=torch.empty(bound, dtype=torch.int8, device=drill.device))

            def step(sized: Any = sized) -> tuple[torch.Tensor, ...]:
                return torch.autograd.grad(attend_in_regions([(q, k)], v, sized).sum(), (q, k, v))

            apart = 0.0
            with torch.no_grad():
                out = attend_in_regions([(q, k)], v, sized)
                truth = out if truth is None else truth
                apart = error(out, truth)
            took = milliseconds(drill.device, 20 if drill.on_gpu else 3, step)
            wrong = "" if apart < 1e-6 else "another output"
            drill.numbers(f"room {room}, bound {bound}", took, "ms forward and backward", wrong=wrong)


def resume(drill: Drill) -> None:
    """Kill a run some steps after its save at step 4, start it again, and compare losses bit for bit."""
    run = drill.work / "resume"
    checkpoints = {"checkpoint_enable": True, "checkpoint_interval": 4, "checkpoint_keep_latest_k": 1}
    options = {"training_global_batch_size": 4, "training_steps": 12, "metrics_log_freq": 1, **checkpoints}
    command = [sys.executable, "-m", "cistron.trainer.train", *drill.arguments("llama3_1b", "resume", **options)]
    free = shutil.disk_usage(drill.work).free / 2**30
    drill.numbers("free disk", free, "GiB", wrong="" if free > 32 or not drill.on_gpu else "two checkpoints of 15 GB need 32")
    begun = time.perf_counter()
    process = subprocess.Popen(command)
    saved = run / "checkpoint" / "step-4" / "manifest.json"
    seen = False
    while process.poll() is None:
        seen = seen or saved.exists()
        if seen and len(records(run)) >= 8:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    status = process.wait()
    drill.numbers("first run", time.perf_counter() - begun, "s")
    drill.numbers("killed", status == -signal.SIGKILL, wrong="" if status == -signal.SIGKILL else f"it ended with {status}")
    if not seen:
        return
    before = {r["step"]: (r["loss"], r["grad_norm"], r["rows_hash"]) for r in records(run)}
    for folder in (run / "checkpoint").glob("step-*"):
        if folder.name != "step-4":
            shutil.rmtree(folder)
    begun = time.perf_counter()
    status = subprocess.run(command).returncode
    drill.numbers("second run", time.perf_counter() - begun, "s", wrong=f"it ended with {status}" if status else "")
    after = {r["step"]: (r["loss"], r["grad_norm"], r["rows_hash"]) for r in records(run)}
    both = [step for step in range(5, max(before) + 1) if step in after]
    equal = [step for step in both if before[step] == after[step]]
    # the first step behind a resume depends on what was saved alone; later ones on kernels' order of sums as well
    hint = "the first step too: what was saved is not what was" if 5 not in equal else "later ones alone: kernels differ"
    wrong = "" if both and equal == both else f"equal are {equal} of {both}; {hint}"
    drill.numbers("steps equal after the resume", len(equal), f"of {len(both)} bit for bit", wrong=wrong)


def inference(drill: Drill) -> None:
    """Sample from the checkpoint of the part before, and embed sequences with it."""
    checkpoint = str(drill.work / "resume" / "checkpoint")
    tokens = 64 if drill.on_gpu else 16
    begun = time.perf_counter()
    generate.main([checkpoint, "--prompt", "def ", "--max-new-tokens", str(tokens), "--temperature", "0"])
    drill.numbers(f"generate, {tokens} tokens and start", time.perf_counter() - begun, "s")
    fasta, output = drill.work / "x.fasta", drill.work / "x.safetensors"
    sequences = 256 if drill.on_gpu else 16
    fasta.write_text("".join(f">s{n}\n{'ACGT' * (10 + n % 50)}\n" for n in range(sequences)))
    begun = time.perf_counter()
    output.unlink(missing_ok=True)
    embed.main([checkpoint, "--input", str(fasta), "--layer", "layers.0.feed_forward", "--output", str(output)])
    drill.numbers(f"embed, {sequences} sequences and start", time.perf_counter() - begun, "s")
    found = {name: tensor for name, tensor in load_file(output).items() if tensor.is_floating_point()}
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found.values())
    finite = bool(found) and all(bool(tensor.isfinite().all()) for tensor in found.values())
    drill.numbers("embeddings", shapes, wrong="" if finite else "not finite, or none")


def records(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


PARTS: dict[str, Callable[[Drill], None]] = {
    "rates": rates,
    "loss_head": head,
    "waits": waits,
    "prefetch": prefetch,
    **dict.fromkeys(RUNS, speed),
    "varlen_padding": padding,
    "resume": resume,
    "inference": inference,
}


def main(argv: list[str] | None = None) -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu: small sizes (default: cuda)")
    parser.add_argument("--out", type=Path, required=True, help="folder for numbers")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and checkpoints, shared by all parts")
    options = parser.parse_args(argv)
    os.chdir(ROOT)
    drill = Drill(options.part, options.device, options.out, options.work, Numbers(options.out / f"{options.part}.jsonl"))
    PARTS[options.part](drill)
    drill.numbers.finish()


if __name__ == "__main__":
    main()

"""Memory of jobs, data and exports, and the time of a resume or a save: a subcommand for each, with --help.

    python benchmarks/memory_and_resume.py job              a training job, beside the estimate of `cistron check`
    python benchmarks/memory_and_resume.py data             the loader and its workers, over many tokens
    python benchmarks/memory_and_resume.py embed            `cistron embed`, over many sequences
    python benchmarks/memory_and_resume.py export           an export and an import of 2 GB
    python benchmarks/memory_and_resume.py resume           from a state of the data to the first batch
    python benchmarks/memory_and_resume.py save -- --model.dim 512      for how long a save stops training

Memory is read from /proc (Linux). Mapped files count as resident while they are cached; so private memory is printed as
well, in which copies and leaks show.
"""

import argparse
import gc
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from cistron.datasets.config import DataConfig
from cistron.datasets.loading import Batch, DataShard, DataState, Loader, RowSettings
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer
from cistron.models.attention import DocumentMask
from cistron.models.config import PRESETS, DecoderConfig, RopeConfig
from cistron.models.decoder import Decoder
from cistron.models.init import init_weights
from cistron.tools import embed
from cistron.trainer.checkpoints import RunState, SavedContract, Saver, Spec, WholeTensors, read, write_whole
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.estimates import estimate
from cistron.trainer.huggingface import export, import_folder
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 0.1  # of the tokens or of the time


def status(field: str) -> int:
    """Bytes that a field of /proc/self/status names: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def resident_and_private(process: str = "self") -> tuple[float, float]:
    """Resident and private MiB of a process."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return int(sizes["Rss"]) / 1024, int(sizes["Private_Dirty"]) / 1024


def in_a_process_of_its_own(function: Callable[..., None], *args: Any) -> None:
    """Call a function in a fresh process, to its end."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0, function.__name__


def prepared(options: argparse.Namespace) -> Path:
    """The folder in which data_speed.py has made its data."""
    folder = options.folder or Path(tempfile.gettempdir(), "cistron-benchmarks")
    if not (folder / "complete").exists():
        sys.exit(f"there is no data in {folder}; run data_speed.py first")
    return folder


ENVIRONMENT = {  # glibc keeps one arena and returns larger blocks at once, or else the measure would be of its habits
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
}
JOBS = {
    "parameters": "model.dim=1024 model.hidden_dim=4096 model.n_heads=16 model.n_kv_heads=8 model.head_dim=64 "
    "model.vocab_size=16384 training.seq_len=128 training.local_batch_size=1",
    "activations": "model.dim=256 model.hidden_dim=1024 model.n_heads=8 model.n_kv_heads=4 "
    "training.seq_len=512 training.local_batch_size=16",
    "checkpointed": "model.dim=512 model.hidden_dim=2048 model.n_heads=8 model.n_kv_heads=4 model.head_dim=64 "
    "model.n_layers=12 training.seq_len=512 training.local_batch_size=8 activation_checkpoint.mode=full",
    "by operator": "model.dim=512 model.hidden_dim=2048 model.n_heads=8 model.n_kv_heads=4 model.head_dim=64 "
    "model.n_layers=12 training.seq_len=512 training.local_batch_size=8 activation_checkpoint.mode=selective",
    "vocabulary": "model.dim=256 model.vocab_size=128256 training.seq_len=512 training.local_batch_size=8",
    "bfloat16, Muon": "model.dim=1024 model.hidden_dim=4096 model.n_heads=16 model.n_kv_heads=8 model.head_dim=64 "
    "model.vocab_size=16384 training.seq_len=128 training.local_batch_size=1 training.mixed_precision_param=bfloat16 "
    "training.dtype=bfloat16 optimizer.state_dtype=bfloat16 optimizer.name=Muon",
    "compiled": "model.dim=256 model.hidden_dim=1024 model.n_heads=8 model.n_kv_heads=4 "
    "training.seq_len=512 training.local_batch_size=16 compile.enable=true",
}


def warm_up(device: torch.device) -> None:
    """Let the libraries load and keep what they will: a forward and backward pass of a small decoder."""
    model = Decoder(PRESETS["debug"]).to(device)
    init_weights(model, 0)
    rows = torch.ones(1, 64, dtype=torch.int64, device=device)
    mask = DocumentMask(eos_id=0, pad_id=1).build(torch.zeros_like(rows).int())
    model(rows, rows.int(), mask, rows).sum().backward()


def measure_job(job: str, folder: str) -> None:
    """Train two steps and print what was measured and estimated, as JSON."""
    overrides = [part for pair in JOBS[job].split() for part in ("--" + pair.split("=")[0], pair.split("=")[1])]
    fixed = ["--job.dump_folder", folder, "--checkpoint.enable", "false", "--training.steps", "2", "--metrics.log_freq", "100"]
    config, _ = load_config(
        ["--config", str(ROOT / "train_configs" / "debug.toml"), *fixed, "--training.global_batch_size", "-1", *overrides]
    )
    world = join(config)
    on_gpu = world.device.type == "cuda"
    warm_up(world.device)

    class Measured(Trainer):
        """Remembers what was held before there was a model."""

        baseline = 0

        def open_evaluations(self) -> Any:
            opened = super().open_evaluations()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                self.baseline = torch.cuda.memory_allocated()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
                self.baseline = status("VmRSS")
            return opened

        def conclude(self) -> None:
            """No sample: it is not part of a step."""

    trainer = Measured(config, world, StopRequest())
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else status("VmHWM")
    moments = estimate(config, trainer.decoder_config, world.layout, trainer.mask.executor, world.device.type)
    worst = max(moments, key=lambda moment: moment.size)
    measured = peak - trainer.baseline
    print(json.dumps({"measured": measured, "baseline": trainer.baseline, "estimated": worst.size, "moment": worst.name}))
    trainer.close()


def job(options: argparse.Namespace) -> None:
    """The memory estimate of `cistron check` and the resident set of a real job, each in its own process.

    Jobs of differing kind, by what is largest or done otherwise in them. Measured is the peak of the resident set over
    two steps (VmHWM, reset before the model is built) less what imports, the process group, the loader and the
    libraries' first calls hold. On CUDA the allocator is read instead.
    """
    if options.measure:
        with tempfile.TemporaryDirectory() as folder:
            measure_job(options.measure, folder)
        return
    print(f"torch {torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU'}; MiB")
    print(f"{'job':14s} {'measured':>10s} {'estimated':>10s} {'ratio':>6s} {'baseline':>9s}  peak, by the estimate")
    for name in options.only:
        command = [sys.executable, __file__, "job", "--measure", name]
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        sizes = {key: result[key] / 2**20 for key in ("measured", "estimated", "baseline")}
        print(
            f"{name:14s} {sizes['measured']:10.0f} {sizes['estimated']:10.0f} {sizes['estimated'] / sizes['measured']:6.3f} "
            f"{sizes['baseline']:9.0f}  {result['moment']}",
            flush=True,
        )


BATCH, SEQ_LEN = 8, 2048  # rows, tokens


def with_children() -> tuple[float, float, int]:
    """Resident and private MiB and open files of this process and its children."""
    gc.collect()
    children = Path("/proc/self/task").glob("*/children")
    processes = ["self", *(number for file in children for number in file.read_text().split())]
    sizes = [resident_and_private(process) for process in processes]
    files = sum(len(list(Path(f"/proc/{process}/fd").iterdir())) for process in processes)
    return sum(size[0] for size in sizes), sum(size[1] for size in sizes), files


def read_tokens(folder: Path, case: str, tokens: int, workers: int) -> None:
    """Read `tokens` and print memory after the warm-up and at the end."""
    hf = case != "bytes"
    form, paths = ("tokens", "shards") if case == "tokens" else ("jsonl", "text/*.jsonl")
    tokenizer = build_tokenizer(
        TokenizerConfig(kind="hf", path=str(folder / "tokenizer")) if hf else TokenizerConfig(kind="byte")
    )
    source = SourceConfig(name="source", format=form, paths=[str(folder / paths)])
    config = DataConfig(sources=[source], lanes=16, packing="best_fit", num_workers=workers)
    batches = tokens // (BATCH * SEQ_LEN)
    with Loader(config, tokenizer, RowSettings(seq_len=SEQ_LEN, seed=0, batch_size=BATCH)) as loader:
        begun, seen = time.perf_counter(), []
        for number in range(batches):
            loader.next()
            if number == int(batches * WARM_UP) or (number + 1) % max(batches // 10, 1) == 0:
                seen.append(with_children())
        seconds = time.perf_counter() - begun
    (warm, warm_private, _), (end, end_private, files) = seen[1], seen[-1]
    highest = max(resident for resident, *_ in seen[1:])
    print(f"{case}, {workers} workers, {tokens:.1e} tokens in {seconds:.0f} s, {files} open files", flush=True)
    print(f"  resident {warm:.0f} -> {end:.0f} MiB ({end / warm - 1:+.1%}), at most {highest:.0f}")
    print(f"  private {warm_private:.0f} -> {end_private:.0f} MiB ({end_private / warm_private - 1:+.1%})", flush=True)


def data(options: argparse.Namespace) -> None:
    """Resident memory of the loader and its workers over many tokens: it must not grow after the warm-up."""
    folder = prepared(options)
    for workers in options.workers:
        in_a_process_of_its_own(read_tokens, folder, options.case, options.tokens, workers)


OUTPUTS = (("mean", ".safetensors"), ("mean", ".parquet"), ("none", ".safetensors"), ("none", ".parquet"))


def write_model(folder: Path) -> None:
    """A checkpoint of random weights."""
    config = PRESETS["debug"]
    model = Decoder(config)
    init_weights(model, seed=0)
    weights = model.state_dict()
    contract = SavedContract(eos=0, pad=1, vocab=config.vocab_size, tokenizer="byte")
    state = RunState.of(config=JobConfig(), model=config, contract=contract)
    write_whole(folder, {name: Spec.of(tensor) for name, tensor in weights.items()}, weights.__getitem__, state)


def write_sequences(path: Path, sequences: int) -> None:
    """Write random nucleotides as FASTA."""
    draw = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(sequences):
            text = draw.choice(np.frombuffer(b"ACGT", dtype=np.uint8), size=draw.integers(20, 81)).tobytes().decode()
            file.write(f">s{number}\n{text}\n")


def embed_all(folder: Path, pool: str, ending: str, sequences: int) -> None:
    """Embed, and print memory after the warm-up, at the end and at its highest."""
    seen: list[tuple[float, float]] = []
    over = Event()

    def watch() -> None:
        while not over.wait(0.1):
            seen.append(resident_and_private())

    watcher = Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    output = folder / f"{pool}{ending}"
    layer = "layers.0.feed_forward"
    embed.main(
        [str(folder / "step-0"), "--input", str(folder / "x.fasta"), "--layer", layer, "--pool", pool, "--output", str(output)]
    )
    seconds = time.perf_counter() - begun
    over.set()
    watcher.join()
    size = output.stat().st_size / 2**20
    print(f"{pool}, {ending}: {sequences:,} sequences in {seconds:.0f} s, output {size:,.0f} MiB")
    for name, values in zip(("resident", "private"), zip(*seen, strict=True), strict=True):
        warm = values[int(len(values) * WARM_UP)]
        print(f"  {name} {warm:.0f} -> {values[-1]:.0f} MiB, at most {max(values):.0f}", flush=True)
    output.unlink()


def embeddings(options: argparse.Namespace) -> None:
    """Resident memory of `cistron embed`: it must not grow after the warm-up, nor when parts are put together.

    The debug shape with random weights on the CPU, random nucleotides of 20 to 80 bases; memory is read ten times a
    second.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "step-0")
        write_sequences(folder / "x.fasta", options.sequences)
        for output in OUTPUTS:
            in_a_process_of_its_own(embed_all, folder, *output, options.sequences)


def describe(layers: int) -> DecoderConfig:
    """A Llama of about 25 million parameters a layer."""
    return DecoderConfig(
        vocab_size=32_000,
        dim=1536,
        n_layers=layers,
        n_heads=12,
        n_kv_heads=4,
        head_dim=128,
        hidden_dim=4096,
        norm_eps=1e-5,
        qk_norm=False,
        tie_embeddings=False,
        rope=RopeConfig(),
    )


def specs_of(shape: DecoderConfig) -> dict[str, Spec]:
    """Type and shape of every parameter."""
    with torch.device("meta"):
        return {name: Spec(torch.float32, tuple(tensor.shape)) for name, tensor in Decoder(shape).state_dict().items()}


def write(folder: Path, layers: int) -> None:
    """A checkpoint of random weights."""
    shape = describe(layers)
    specs = specs_of(shape)
    job = JobConfig(tokenizer=TokenizerConfig(kind="hf"))
    contract = SavedContract(eos=0, pad=1, vocab=shape.vocab_size, tokenizer=None)
    state = RunState.of(config=job, model=shape, contract=contract)
    torch.manual_seed(0)
    write_whole(folder / "step-0", specs, lambda name: torch.randn(specs[name].shape), state)


def export_it(folder: Path) -> None:
    """To safetensors in files of 500 MB."""
    export(read(folder / "step-0"), folder / "hf", tokenizer=None, max_shard_size=500_000_000)


def import_it(folder: Path) -> None:
    """Import the exported folder as a checkpoint again."""
    import_folder(folder / "hf", folder / "back")


def compare(folder: Path) -> None:
    """Compare the imported weights with the first ones, bit for bit."""
    first, back = WholeTensors(folder / "step-0"), WholeTensors(folder / "back" / "step-0")
    assert sorted(first.names()) == sorted(back.names())
    assert all(torch.equal(first.read(name), back.read(name)) for name in first.names())


def measured(title: str, step: Callable[..., None], *args: Any) -> None:
    """Run a step; print MB before it and at its peak, and seconds."""
    torch.randn(8).sum()  # what torch loads when it first computes
    before, started = status("VmRSS") / 1e6, time.perf_counter()
    step(*args)
    seconds, peak = time.perf_counter() - started, status("VmHWM") / 1e6
    print(f"{title:<8} {before:,.0f} MB before, {peak - before:+,.0f} MB at the peak, {seconds:.0f} s", flush=True)


def export_and_import(options: argparse.Namespace) -> None:
    """Resident memory of an export and an import: it must not grow with the model.

    A random checkpoint is written one tensor at a time, exported and imported, each in a process of its own, and
    removed again; with 16 layers it takes 6 GB of disk. What is printed is the highest resident memory of that process
    above what it had after its imports, beside the largest tensor. Then the imported bits are compared with the first
    ones.
    """
    sizes = [dtype.itemsize * torch.Size(shape).numel() / 1e6 for dtype, shape in specs_of(describe(options.layers)).values()]
    print(f"{sum(sizes):,.0f} MB of weights, the largest tensor {max(sizes):,.0f} MB", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        in_a_process_of_its_own(measured, "write", write, folder, options.layers)
        in_a_process_of_its_own(measured, "export", export_it, folder)
        in_a_process_of_its_own(measured, "import", import_it, folder)
        compare(folder)
        print("the imported weights are the written ones, bit for bit")


CORPORA = {
    "tokens": ("shards", "hf", (100, 10_000, 1_000_000)),
    "text": ("text/*.jsonl", "hf", (100, 10_000)),
    "bytes": ("text/*.jsonl", "byte", (100, 10_000, 100_000)),
}


def open_loader(folder: Path, case: str, tokenizer: Tokenizer, state: DataState | None) -> Loader:
    """Open the loader of a case at a state of its data."""
    form = "tokens" if case == "tokens" else "jsonl"
    source = SourceConfig(name="source", format=form, paths=[str(folder / CORPORA[case][0])])
    config = DataConfig(sources=[source], lanes=16, packing="best_fit")
    return Loader(config, tokenizer, RowSettings(seq_len=2048, seed=0, batch_size=BATCH), DataShard(state=state))


def states(folder: Path, case: str, tokenizer: Tokenizer) -> dict[int, tuple[str, str]]:
    """Return state and next batch, as text, after each number of rows."""
    found = {}
    with open_loader(folder, case, tokenizer, None) as loader:
        for rows in CORPORA[case][2]:
            batch = loader.next()
            while batch is not None and batch.state.rows < rows:
                batch = loader.next()
            state = loader.state().model_dump_json()
            found[rows] = state, fingerprint(loader.next())
    return found


def fingerprint(batch: Batch | None) -> str:
    """Return a text that tells one batch from another."""
    assert batch is not None
    return f"{batch.rows} {hash(batch.tokens.numpy().tobytes())}"


def resume(options: argparse.Namespace) -> None:
    """From a state to the first batch: what a resume of the data costs, by how far the run has come.

    A loader runs to each number of rows and its state is kept, as a checkpoint would. Then loaders are opened at these
    states one after another, each in this process and each with everything that a start does: listing and stamping the
    files, opening shards, comparing ids with tiktoken's, reading up to the first batch.
    """
    folder = prepared(options)
    for case, (_, kind, _) in CORPORA.items():
        tokenizer = build_tokenizer(TokenizerConfig(kind=kind, path=str(folder / "tokenizer") if kind == "hf" else None))
        kept = states(folder, case, tokenizer)
        seconds: dict[int, list[float]] = {rows: [] for rows in kept}
        for _ in range(options.repeats):
            for rows, (state, expected) in kept.items():
                begun = time.perf_counter()
                with open_loader(folder, case, tokenizer, DataState.read(json.loads(state))) as loader:
                    batch = loader.next()
                    seconds[rows].append(time.perf_counter() - begun)
                assert fingerprint(batch) == expected, "a resume went on with another batch"
        medians = {rows: statistics.median(times) for rows, times in seconds.items()}
        for rows, (state, _) in kept.items():
            print(
                f"{case}: after {rows:9,} rows {medians[rows] * 1e3:7.1f} ms ({min(seconds[rows]) * 1e3:.1f} to "
                f"{max(seconds[rows]) * 1e3:.1f}), state {len(state):,} bytes"
            )
        print(f"{case}: longest / shortest {max(medians.values()) / min(medians.values()):.2f}")


SAVED = re.compile(r"saved .*/step-(\d+), (\S+) GB in (\S+) s; training stood still for (\S+) s")


def save(options: argparse.Namespace) -> None:
    """For how long a save stops training: asynchronously against waiting for the disk, alternately, on one process.

    A save every `--interval` steps, the modes of `checkpoint.async_mode` alternately. What counts as stopped is what
    the saves' own messages say, and beside it the time of the steps during which a checkpoint is being written, over
    that of others.
    """
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        steps = 2 * options.saves * options.interval
        argv = ["--config", options.config, "--job.dump_folder", folder, "--training.steps", str(steps)]
        argv += ["--checkpoint.interval", str(options.interval), "--checkpoint.keep_latest_k", "1", *options.overrides]
        config, _ = load_config(argv)
        trainer = Trainer(config, join(config), StopRequest())
        said: list[str] = []
        say = trainer.log.say
        waiting = config.checkpoint.model_copy(update={"async_mode": "disabled"})
        beside = config.checkpoint.model_copy(update={"async_mode": "async"})
        savers = [
            Saver(mode, trainer.saver.run, trainer.checkpoints, trainer.world, said.append, 0) for mode in (beside, waiting)
        ]
        trainer.saver = savers[0]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        fetch, save_now = trainer.fetch, trainer.save
        state = {"began": 0.0, "writing": False}

        def fetch_and_time() -> object:
            now = time.perf_counter()
            if state["began"]:
                seconds[state["writing"]].append(now - state["began"])
            state.update(began=now, writing=trainer.saver.running is not None)
            return fetch()

        def save_in_turn() -> None:
            trainer.saver.finish()
            trainer.saver = trainer.heartbeat.saver = savers[trainer.progress.step // options.interval % 2]
            save_now()
            state["began"] = 0.0  # the save is counted by its own message

        trainer.fetch, trainer.save = fetch_and_time, save_in_turn  # type: ignore[method-assign, assignment]
        trainer.log.say = lambda _message: None  # type: ignore[method-assign]
        trainer.train()
        trainer.close()

    saves = [match.groups() for line in said if (match := SAVED.match(line))]
    stalls: dict[int, list[float]] = {0: [], 1: []}
    for step, _, _, stall in saves[2:]:
        stalls[int(step) // options.interval % 2].append(float(stall))
    stopped, waited = statistics.median(stalls[0]), statistics.median(stalls[1])
    say(f"checkpoints of {saves[-1][1]} GB; each save stops training for (median of {len(stalls[0])} and {len(stalls[1])}):")
    say(f"  asynchronously    {stopped:.3f} s")
    say(f"  waiting for it    {waited:.3f} s    ratio {waited / stopped:.1f}")
    busy, idle = statistics.median(seconds[True]), statistics.median(seconds[False])
    say(f"a step takes {busy:.3f} s while a checkpoint is written, {idle:.3f} s otherwise: ratio {busy / idle:.3f}")


def main() -> None:
    """Run one of the subcommands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="SUBCOMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        summary = str(run.__doc__).partition("\n")[0]
        form = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=summary, description=run.__doc__, formatter_class=form)
        command.set_defaults(run=run)
        return command

    command = add("job", job)
    command.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS), help="jobs to run (default: all)")
    command.add_argument("--measure", metavar="JOB", help="run this one alone, in this process")
    where = "where data_speed.py keeps its data (default: where it does by default)"
    command = add("data", data)
    command.add_argument("--folder", type=Path, help=where)
    command.add_argument("--tokens", type=int, default=2 * 10**9, help="tokens to read (default: 2*10^9)")
    command.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of workers (default: 0 2)")
    command.add_argument("--case", choices=["tokens", "bytes", "text"], default="tokens", help="what to read (default: tokens)")
    command = add("embed", embeddings)
    command.add_argument("--sequences", type=int, default=10**5, help="to embed (default: 10^5)")
    command = add("export", export_and_import)
    command.add_argument("--layers", type=int, default=16, help="of the model (default: 16, 2 GB)")
    command.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    command = add("resume", resume)
    command.add_argument("--folder", type=Path, help=where)
    command.add_argument("--repeats", type=int, default=15, help="resumes per state (default: 15)")
    command = add("save", save)
    command.add_argument("--config", default=str(ROOT / "train_configs" / "debug.toml"), help="job to run")
    command.add_argument("--saves", type=int, default=8, help="of each mode (default: 8)")
    command.add_argument("--interval", type=int, default=6, help="steps between two saves (default: 6)")
    command.add_argument("--folder", help="where to write (default: a temporary folder)")
    command.add_argument("overrides", nargs="*", help="TOML overrides, after --")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

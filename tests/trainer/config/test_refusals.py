"""Bad input: one clear message, exit status 2, nothing trained. Wrong numbers stop the run before they spread."""

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cistron.datasets.errors import DataError
from cistron.tests.helpers.jobs import metrics, refusal, start, train_here, why_incomplete, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join, run_command
from cistron.trainer.train import Trainer


def jsonl(folder: Path, *lines: str) -> dict[str, str]:
    (folder / "bad.jsonl").write_text("\n".join(lines) + "\n")
    return {"format": "jsonl", "path": str(folder / "bad.jsonl")}


def fasta(folder: Path, data: bytes, name: str = "bad.fasta") -> dict[str, str]:
    (folder / name).write_bytes(data)
    return {"format": "fasta", "path": str(folder / name)}


def protein(folder: Path, residues: bytes) -> dict[str, str]:
    return {**fasta(folder, b">good\nMKV\n>p x\n" + residues + b"\n"), "kind": "protein"}


def empty(folder: Path) -> dict[str, str]:
    (folder / "empty.txt").touch()
    return {"format": "text", "path": str(folder / "empty.txt")}


def far_map(name: str, window: int, trained: int) -> tuple[str, ...]:
    options = {"attention.position_map": name, "attention.map_window": str(window), "rope.original_seq_len": str(trained)}
    return tuple(word for key, value in options.items() for word in (f"--model.{key}", value))


def rerope(window: int, trained: int) -> tuple[str, ...]:
    return far_map("rerope", window, trained)


GOOD = json.dumps({"text": "a document"})
RECORDS = b"".join(b">r%d\nACGT\n" % i for i in range(3000))
BAD_DATA = {
    "missing file": (lambda f: {"format": "text", "path": str(f / "nowhere.txt")}, ["nowhere.txt", "no such file"]),
    "empty file": (empty, ["empty.txt", "empty"]),
    "glob without a match": (lambda f: {"format": "text", "path": str(f / "*.none")}, ["*.none", "matches no file"]),
    "compressed in another way": (
        lambda f: {**empty(f), "path": str(shutil.copy(f / "empty.txt", f / "a.txt.zst"))},
        ["a.txt.zst"],
    ),
    "no documents": (lambda f: jsonl(f, "", " ", ""), ["bad: ", "no document"]),
    "invalid JSON": (lambda f: jsonl(f, GOOD, '{"text": oops}'), ["bad.jsonl", "record 2", "not valid JSON"]),
    "missing field": (lambda f: jsonl(f, '{"body": "x"}'), ["bad.jsonl", "record 1", "'text'", "'body'"]),
    "text before the first header": (lambda f: fasta(f, b"ACGT\n>r\nACGT\n"), ["bad.fasta", "'>'", "ACGT"]),
    "blank in a sequence": (
        lambda f: fasta(f, b">a\nACGT\n>b some\nAC GT\n"),
        ["bad.fasta, record b, byte 18: a blank in a line of the sequence"],
    ),
    "record without a residue": (lambda f: fasta(f, b">a\nAC\n>b\n\n>c\nA\n"), ["bad.fasta, record b, byte 6", "no residue"]),
    "comment line": (lambda f: fasta(f, b">a\nAC\n;note\nGT\n"), ["bad.fasta, record a, byte 6", "begins with ';'"]),
    "eos byte in a protein": (
        lambda f: protein(f, b"MK\0V"),
        ["bad.fasta, record p, byte 17: a NUL byte in a line of the sequence"],
    ),
    "unknown residue": (
        lambda f: protein(f, b"MKJ"),
        ["bad.fasta, record p, byte 17: 'J' is no letter of the protein vocabulary"],
    ),
    "lowercase protein": (lambda f: protein(f, b"Mk"), ["bad.fasta, record p, byte 16: lowercase 'k'", 'on_unknown = "map"']),
    "RNA in dna": (
        lambda f: {**fasta(f, b">r\nACGU\n"), "kind": "dna"},
        ["bad.fasta, record r, byte 6: 'U' is RNA; tokenizer.on_unknown = \"map\" reads it as T"],
    ),
    "truncated gzip": (
        lambda f: fasta(f, gzip.compress(RECORDS)[:-200], "bad.fasta.gz"),
        ["bad.fasta.gz", "data is truncated", "gzip"],
    ),
}
BAD_SETTINGS = {
    "seq_len under tensor parallelism": (
        ("--training.seq_len", "63", "--parallelism.tensor_parallel_degree", "2"),
        ["training.seq_len = 63: must be a multiple of 2", "the next is 64"],
    ),
    "heads under tensor parallelism": (
        ("--model.n_kv_heads", "1", "--parallelism.tensor_parallel_degree", "2"),
        ["model.n_kv_heads = 1: must be a multiple of 2"],
    ),
    "seq_len under context and tensor parallelism": (
        ("--training.seq_len", "66", "--parallelism.context_parallel_degree", "2", "--parallelism.tensor_parallel_degree", "2"),
        ["training.seq_len = 66: must be a multiple of 4", "context_parallel_degree 2 x", "tensor_parallel_degree 2", "is 68"],
    ),
    "widths under context parallelism": (
        ("--training.seq_len", "192", "--data.layout", "padded", "--parallelism.context_parallel_degree", "3"),
        ["parallelism.context_parallel_degree 3", "must divide data.pad_multiple = 128"],
    ),
    "seq_len in blocks of the flex mask": (
        ("--device", "cuda", "--training.seq_len", "640", "--parallelism.context_parallel_degree", "2"),
        ["training.seq_len = 640: must be a multiple of 2 x 128 = 256", "whole blocks of the flex mask; the next is 768"],
    ),
    "widths in blocks of the flex mask": (
        ("--device", "cuda", "--data.layout", "padded", "--parallelism.context_parallel_degree", "2"),
        ["data.pad_multiple = 128: must be a multiple of 2 x 128 = 256", "whole blocks of the flex mask"],
    ),
    "varlen under context parallelism": (
        (
            *("--device", "cuda", "--model.attention.executor", "varlen"),
            *("--training.mixed_precision_param", "bfloat16", "--parallelism.context_parallel_degree", "2"),
        ),
        ["parallelism.context_parallel_degree = 2", '"varlen"', "blocks from all over a row", '"flex"'],
    ),
    "async tensor parallelism without tensor parallelism": (
        ("--parallelism.enable_async_tensor_parallel", "true", "--compile.enable", "true"),
        ["enable_async_tensor_parallel = true", "tensor_parallel_degree > 1 and compile.enable = true, found 1 and true"],
    ),
    "lanes and data-parallel degree": (
        ("--parallelism.data_parallel_shard_degree", "2", "--data.lanes", "5"),
        ["data.lanes = 5: must be a multiple of 2", "the next is 6"],
    ),
    "lanes and workers": (("--data.num_workers", "3"), ["data.lanes = 8: must be a multiple of 3"]),
    "global batch and ranks": (
        ("--parallelism.data_parallel_shard_degree", "4", "--training.global_batch_size", "6"),
        ["training.global_batch_size = 6: must be a multiple of 4"],
    ),
    "micro-batches that do not fit": (
        ("--training.local_batch_size", "3"),
        ["training.local_batch_size = 3: must divide the 8 rows"],
    ),
    "query and key heads": (("--model.n_kv_heads", "3"), ["model.n_heads", "n_kv_heads"]),
    "unknown preset": (("--model.preset", "llama3_8B"), ["model.preset = 'llama3_8B'", "no such preset", "llama3_8b"]),
    "an executor the CPU lacks": (("--model.attention.executor", "flex"), ["model.attention", "no backward", "auto"]),
    "a window that no row exceeds": (
        ("--model.attention.mask", "sliding", "--model.attention.window", "64"),
        ["model.attention.window is 64", "below training.seq_len = 64; or leave it out together with mask"],
    ),
    "a window without a mask": (
        ("--model.attention.window", "8"),
        ['model.attention.window is 8 with mask "full"', '"sliding" or "lambda"'],
    ),
    "a window of nothing": (
        ("--model.attention.mask", "sliding", "--model.attention.window", "0"),
        ['model.attention.window is 0, mask "sliding" needs at least 1'],
    ),
    "a mask without a window": (("--model.attention.mask", "sliding"), ["window is not set", "needs at least 1"]),
    "more sinks than the window": (
        ("--model.attention.mask", "lambda", "--model.attention.window", "4"),
        ["model.attention.sinks is 4", "below the window of 4"],
    ),
    "an option of another map": (
        (*rerope(16, 32), "--model.attention.group", "4"),
        ['group is 4 with mask "full" and position_map "rerope": it belongs to self_extend'],
    ),
    "a map without the trained length": (
        ("--model.attention.position_map", "rerope", "--model.attention.map_window", "16"),
        ["model.rope.original_seq_len is not set"],
    ),
    "a map as wide as the trained length": (rerope(32, 32), ["map_window is 32", "below model.rope.original_seq_len = 32"]),
    "a map that no row exceeds": (
        rerope(64, 128),
        ["map_window is 64", "below training.seq_len = 64; or leave it out together with position_map"],
    ),
    "sinks as many as a capped distance": (
        (*far_map("distance_cap", 4, 32), "--model.attention.sinks", "4"),
        ["model.attention.sinks is 4", "below the window of 4"],
    ),
    "a map and a window": (
        (*rerope(16, 32), "--model.attention.mask", "sliding", "--model.attention.window", "8"),
        ['mask is "sliding" with position_map "rerope": one or the other'],
    ),
    "a map and a lambda mask": (
        (*far_map("distance_cap", 16, 32), "--model.attention.mask", "lambda", "--model.attention.window", "8"),
        ['mask is "lambda" with position_map "distance_cap": one or the other'],
    ),
    "logn without the trained length": (
        ("--model.attention.logn", "true"),
        ["model.rope.original_seq_len is not set, and model.attention.logn needs it"],
    ),
    "logn where it does nothing": (
        ("--model.attention.logn", "true", "--model.rope.original_seq_len", "64"),
        ["model.attention.logn is true", "training.seq_len = 64", "original_seq_len = 64; raise seq_len, or leave logn out"],
    ),
    "a leak that does not reach": (
        (*far_map("leaky_rerope", 16, 20), "--model.attention.leak", "4"),
        ["leak is 4.0, too little for 64 tokens: the smallest that works is 15.6667"],
    ),
    "groups that do not reach": (
        (*far_map("self_extend", 16, 32), "--model.attention.group", "2"),
        ["group is 2, too little for 64 tokens: the smallest that works is 4"],
    ),
    "a group of one": (
        (*far_map("self_extend", 16, 32), "--model.attention.group", "1"),
        ["group is 1, it must be at least 2"],
    ),
    "a window of no whole groups": (
        (*far_map("self_extend", 18, 32), "--model.attention.group", "4"),
        ["map_window is 18", "multiple of group = 4"],
    ),
    "a map under context parallelism": (
        (*rerope(16, 32), "--parallelism.context_parallel_degree", "2"),
        ['context_parallel_degree = 2 with model.attention.position_map = "rerope"', "context_parallel_degree = 1"],
    ),
    "a window under context parallelism": (
        ("--model.attention.mask", "sliding", "--model.attention.window", "8", "--parallelism.context_parallel_degree", "2"),
        ['context_parallel_degree = 2 with model.attention.mask = "sliding"'],
    ),
    "a map in a kernel without a log-sum-exp": (
        (*rerope(16, 32), "--model.attention.executor", "varlen"),
        ['executor is "varlen" with model.attention.position_map = "rerope"', 'use "auto"'],
    ),
    "kernels of FlexAttention where it does not compute": (
        ("--model.attention.flex_backend", "triton"),
        ['model.attention.flex_backend is "triton", and varlen computes attention', 'set executor = "flex"'],
    ),
    "FlashAttention 4 for a map": (
        (*rerope(16, 32), "--device", "cuda", "--model.attention.flex_backend", "flash"),
        ['model.attention.flex_backend is "flash"', "no gradient of the log-sum-exp", 'position_map = "rerope"', 'use "auto"'],
    ),
    "FlashAttention 4 in float32": (
        ("--device", "cuda", "--model.attention.flex_backend", "flash", "--training.mixed_precision_param", "float32"),
        ['model.attention.flex_backend is "flash": FlashAttention 4 computes in float16 or bfloat16'],
    ),
    "a map of a model that sees both ways": (
        (*rerope(16, 32), "--training.objective", "mlm", "--tokenizer.kind", "protein"),
        ['position_map = "rerope" with a bidirectional model'],
    ),
    "an unknown mask": (("--model.attention.mask", "slide"), ["model.attention.mask = 'slide'", "'sliding' or 'lambda'"]),
    "an unknown map": (("--model.attention.position_map", "rerop"), ["position_map", "rerope", "self_extend"]),
    "more processes than none": (("--parallelism.data_parallel_shard_degree", "0"), ["must be -1"]),
    "an infinite learning rate": (("--optimizer.lr", "Infinity"), ["optimizer.lr", "finite"]),
    "a list that is no JSON": (("--data.sources", "[{bad"), ["command line", "JSON"]),
    "an option of the other tokenizer": (("--tokenizer.eos_token", "<eos>"), ["tokenizer.eos_token", "byte"]),
    "hf without a path": (("--tokenizer.kind", "hf"), ["tokenizer.path is not set"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    make, expected = BAD_DATA[case]
    source = make(tmp_path)
    text = json.dumps([{"name": "bad", "format": source["format"], "paths": [source["path"]]}])
    tokenizer = ("--tokenizer.kind", source.get("kind", "byte"))
    message = refusal(capsys, write_job(tmp_path), "--data.lanes", "1", "--data.sources", text, *tokenizer)
    for part in expected:
        assert part in message


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_do_not_fit_are_refused_with_the_arithmetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    overrides, expected = BAD_SETTINGS[case]
    config = write_job(tmp_path)
    overrides = tuple(o.replace("CORPUS", str(tmp_path / "corpus")) for o in overrides)
    if any("parallelism" in o or o == "--device" for o in overrides):  # what `check` does: no such processes need to exist
        from cistron.tools.cli import run

        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run("check", [str(config), *overrides])
        assert caught.value.code == 2
        message = capsys.readouterr().err
    else:
        message = refusal(capsys, config, *overrides)
    for part in expected:
        assert part in message


def test_degrees_that_do_not_fit_the_processes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, write_job(tmp_path), "--parallelism.tensor_parallel_degree", "2")
    assert "replicate 1 x shard 1 x context 1 x tensor 2 = 2, but 1 process(es) were started" in message


def test_async_tensor_parallelism_is_refused_without_symmetric_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, write_job(tmp_path), "--parallelism.enable_async_tensor_parallel", "true")
    assert "needs GPUs with symmetric memory, the device is 'cpu'; leave it out" in message


def test_a_folder_that_cannot_be_written_is_refused_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    message = refusal(capsys, write_job(tmp_path), "--job.dump_folder", str(tmp_path / "file" / "run"))
    assert f"job.dump_folder = '{tmp_path}/file/run': cannot be written" in message


def test_a_refused_job_leaves_no_folder_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, write_job(tmp_path), "--model.eos_id", "7")
    assert not (tmp_path / "run").exists()


def test_documents_of_exactly_a_row_train_although_some_rows_hold_an_eos_alone(tmp_path: Path) -> None:
    records = "".join(f">{i}\n{'ACGT' * 16}\n" for i in range(400))
    (tmp_path / "fixed.fasta").write_text(records)
    source = [{"name": "a", "format": "fasta", "paths": [str(tmp_path / "fixed.fasta")]}]
    config = write_job(tmp_path, steps=200)
    options = ("--training.global_batch_size", "1", "--checkpoint.enable", "false")
    train_here(config, "--data.sources", json.dumps(source), *options)
    losses = [record["loss"] for record in metrics(config)]
    assert losses.count(0.0) >= 1, "a step without a target has no loss"
    assert min(loss for loss in losses if loss) < 3.0


def test_text_that_holds_the_pad_byte_is_not_taken_for_padding(tmp_path: Path) -> None:
    (tmp_path / "soh.txt").write_bytes(b"\x01" * 5000)
    source = [{"name": "a", "format": "text", "paths": [str(tmp_path / "soh.txt")]}]
    config = write_job(tmp_path, steps=2)
    train_here(config, "--data.sources", json.dumps(source), "--data.lanes", "1")
    assert metrics(config)[-1]["packing_use"] == 1.0


def test_no_sources_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no [[data.sources]] table" in refusal(capsys, write_job(tmp_path), "--data.sources", "[]")


def test_under_torchrun_a_mistake_is_printed_once_with_status_2(tmp_path: Path) -> None:
    running = start(write_job(tmp_path), "--model.eos_id", "7", processes=2)
    output, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert output.count("the eos contract is broken") == 1
    assert "exitcode  : 2" in output
    assert "train.py" not in output, "no traceback into the trainer"


def bad_record_at_step_3(config_path: str) -> tuple[str, int]:
    """Rank 1's loader meets a bad record, rank 0's does not: returns the error of this rank and the steps taken."""
    config, _ = load_config(["--config", config_path])
    world = join(config)
    trainer = Trainer(config, world, StopRequest())
    good = trainer.data.loader.next

    def fails(interrupted: Callable[[], bool]) -> Any:
        if world.rank == 1 and trainer.progress.step == 2:
            raise DataError("not valid JSON", file="x.jsonl", record=12, offset=345)
        return good(interrupted)

    trainer.data.loader.next = fails  # type: ignore[method-assign, assignment]
    message = ""
    try:
        trainer.train()
    except DataError as error:
        message = str(error)
    trainer.close()
    assert why_incomplete(trainer.checkpoints / "step-2") is None, "what was trained before the bad record is saved"
    return message, trainer.progress.step


def test_a_bad_record_that_one_rank_meets_late_ends_all_ranks_with_its_place(tmp_path: Path) -> None:
    results = run_on_ranks(bad_record_at_step_3, 2, str(write_job(tmp_path)))
    assert results == [("x.jsonl, record 12, byte 345: not valid JSON", 2)] * 2


def test_a_divergence_ends_with_status_1_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_job(tmp_path, steps=60)
    overrides = ("--optimizer.lr", "1000", "--optimizer.weight_decay", "100", "--training.max_norm", "1e30")
    overrides = (*overrides, "--training.max_nonfinite_steps", "1", "--checkpoint.interval", "1")
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: train_here(config, *overrides))
    assert caught.value.code == 1
    error = capsys.readouterr().err
    last = metrics(config)[-1]["step"]
    assert error.startswith(f"stopped: step {last + 1}: loss ")
    assert "nan" in error
    assert "Traceback" not in error
    newest = max((tmp_path / "run" / "checkpoint").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert newest.name == f"step-{last}"
    assert why_incomplete(newest) is None


def test_a_command_that_does_not_exist_is_answered_with_those_that_do() -> None:
    done = subprocess.run(["cistron", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train, check, doctor, inspect, prepare, generate" in done.stderr

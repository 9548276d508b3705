"""Masked language modelling: the same is hidden in any layout and after a resume; the impossible is refused."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from cistron.tests.helpers.jobs import column, metrics, refusal, train, train_here, train_until, write_job

SOURCE = """[[data.sources]]
name = "words"
format = "jsonl"
paths = ["{folder}/corpus/*.jsonl"]
"""
PROTEINS = """[[data.sources]]
name = "proteins"
format = "fasta"
paths = ["{folder}/proteins.fasta"]
"""
ONE, TWO, KILLED, PADDED, BUCKETS, AT_ONCE = "run", "two", "killed", "padded", "buckets", "at_once"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protein encoder, run on one process and on two, killed and resumed, and with one protein to a row."""
    folder = tmp_path_factory.mktemp("mlm")
    draw = random.Random(0)
    motifs = ["MKVLA", "GGSTR", "WPDEN", "CCHIQ", "FYLKV"]
    records = (f">p{n}\n{''.join(draw.choices(motifs, k=draw.randint(1, 20)))}\n" for n in range(600))
    (folder / "proteins.fasta").write_text("".join(records))
    config = write_job(folder, 12)
    text = config.read_text().replace(SOURCE.format(folder=folder), PROTEINS.format(folder=folder))
    text = text.replace("[training]\n", '[training]\nobjective = "mlm"\n').replace(
        "local_batch_size = 4", "local_batch_size = 2"
    )
    config.write_text(text + '[tokenizer]\nkind = "protein"\n')
    dump = [f"{folder}/{name}" for name in (TWO, KILLED, PADDED, BUCKETS, AT_ONCE)]
    train_here(config)
    two = ("--parallelism.data_parallel_shard_degree", "2", "--data.num_workers", "2")
    train(config, "--job.dump_folder", dump[0], *two, processes=2)
    padded = ("--data.layout", "padded", "--data.pad_multiple", "16")
    train_here(config, "--job.dump_folder", dump[2], *padded)
    train_here(config, "--job.dump_folder", dump[3], *padded, "--data.length_buckets", "true")
    train_here(config, "--job.dump_folder", dump[4], *padded, "--training.local_batch_size", "8")
    return config


def test_two_processes_hide_what_one_does_and_learn_the_same(job: Path) -> None:
    one, two = metrics(job, ONE), metrics(job, TWO)
    assert len(one) == 12
    assert column(one, "rows_hash") == column(two, "rows_hash")  # of what rows show and ask for
    assert column(two, "loss") == pytest.approx(column(one, "loss"), rel=1e-5)
    assert one[-1]["loss"] < 0.9 * one[0]["loss"]


def test_a_resumed_run_hides_what_it_would_have_hidden(job: Path) -> None:
    folder = job.parent / KILLED / "run"
    config = job.parent / KILLED / "job.toml"
    config.parent.mkdir()
    config.write_text(job.read_text().replace(f"{job.parent}/run", str(folder)))
    train_until(6, config)
    train_here(config)
    assert column(metrics(config), "loss") == column(metrics(job), "loss")
    assert column(metrics(config), "rows_hash") == column(metrics(job), "rows_hash")


def test_rows_dealt_to_micro_batches_by_length_are_the_same_rows(job: Path) -> None:
    padded, buckets, at_once = (metrics(job, name) for name in (PADDED, BUCKETS, AT_ONCE))
    assert column(padded, "rows_hash") == column(buckets, "rows_hash") == column(at_once, "rows_hash")
    assert column(buckets, "loss") == pytest.approx(column(padded, "loss"), rel=1e-5)
    assert column(at_once, "loss") == pytest.approx(column(padded, "loss"), rel=1e-5)
    used = [sum(record["packing_use"] for record in run) for run in (padded, buckets)]
    assert used[1] > 1.05 * used[0], "rows of about one length need less padding"


def test_validation_tells_no_bits_of_a_text_of_which_a_part_is_asked_for(job: Path, tmp_path: Path) -> None:
    source = [{"name": "held out", "format": "fasta", "paths": [str(job.parent / "proteins.fasta")]}]
    validation = ("--validation.enable", "true", "--validation.sources", json.dumps(source), "--validation.steps", "2")
    train_here(job, "--job.dump_folder", str(tmp_path), "--training.steps", "1", *validation)
    record = json.loads((tmp_path / "validation.jsonl").read_text())
    assert record["bits_per_byte"] is None
    assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.causal", "true"), 'model.causal = true: training.objective = "mlm" needs the other'),
        (("--tokenizer.kind", "byte", "--checkpoint.load_step", "0"), "the byte tokenizer has no mask token"),
        (("--training.objective", "causal", "--mlm.mask_rate", "0.2"), 'mlm: is not read with training.objective = "causal"'),
        (("--mlm.rate_schedule", "esm3", "--mlm.mask_rate", "0.2"), "mlm.mask_rate = 0.2: is not read"),
        (("--mlm.mask_share", "0.95"), "must be at most 1"),
        (("--data.length_buckets", "true"), 'data.length_buckets = true: is of data.layout = "padded"'),
        (
            ("--data.layout", "padded", "--data.length_buckets", "true", "--training.local_batch_size", "8"),
            "nothing is there to assign them to",
        ),
        (("--mlm.mask_rate", "0.3", "--training.steps", "20"), "data.objective.rate: checkpoint 0.15, now 0.3"),
    ],
)
def test_what_does_not_fit_is_refused(
    job: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in refusal(capsys, job, *options)

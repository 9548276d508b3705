"""What a step is worth in FLOPs, what share of a device that is, and where the records go."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cistron.datasets.loading import Batch
from cistron.models.attention.masks import document_dense_mask
from cistron.models.config import FULL_ATTENTION, PRESETS, AttentionConfig
from cistron.models.positions import reaches
from cistron.tests.helpers.jobs import metrics, refusal, train_here, write_job
from cistron.trainer.build import make_model
from cistron.trainer.checkpoints import Progress
from cistron.trainer.config import SINKS, JobConfig, load_config
from cistron.trainer.errors import ConfigError
from cistron.trainer.estimates import document_flops, frozen_flops, peak_flops, row_flops, sizes_of
from cistron.trainer.estimates.flops import named_peak
from cistron.trainer.metrics import MetricsLog, MetricsRecord, Outcome, StepCounts
from cistron.trainer.metrics.sinks import WeightsAndBiases
from cistron.trainer.processes import join
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

DEBUG = PRESETS["debug"]


def batch(rows: int, seq_len: int, seed: int) -> Batch:
    """Rows of documents of random lengths, many of them short, with some padding behind the last."""
    draw = torch.Generator().manual_seed(seed)
    sequence_ids, positions = (torch.zeros(rows, seq_len, dtype=torch.int32) for _ in range(2))
    for row in range(rows):
        used = seq_len - int(torch.randint(seq_len // 2, (), generator=draw))
        opens = torch.rand(used, generator=draw) < torch.rand((), generator=draw)
        sequence_ids[row, :used] = opens.cumsum(0) - int(opens[0])
        sequence_ids[row, used:] = -1
        starts = torch.where(opens, torch.arange(used), 0).cummax(0).values
        positions[row, :used] = torch.arange(used) - starts
    tokens = torch.ones(rows, seq_len, dtype=torch.int64)
    return Batch(tokens, tokens, positions, sequence_ids, list(range(rows)), [0] * rows, {}, None, None)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_attention_is_counted_as_the_mask_leaves_it(causal: bool, seed: int) -> None:
    rows = batch(3, 96, seed)
    windows = AttentionConfig(mask="lambda", window=1 + 7 * seed, sinks=seed) if causal and seed else FULL_ATTENTION
    totals = StepCounts.of([rows], 1, attention=windows)
    real = rows.sequence_ids >= 0
    (reach,) = reaches(windows)
    mask = document_dense_mask(rows.sequence_ids, causal, reach=reach)[:, 0] & real[:, :, None] & real[:, None, :]
    per_pair = 12 * DEBUG.n_layers * DEBUG.n_heads * DEBUG.head_dim
    counted = document_flops(DEBUG.replace(causal=causal), sum(totals.tokens), totals.causal_pairs)
    assert counted == row_flops(DEBUG, 0, int(real.sum())) + per_pair * int(mask.sum())


@pytest.mark.parametrize(
    "fine_tuning",
    [
        {"freeze": ["output", "layers.1.feed_forward"]},
        {"freeze": ["tok_embeddings", "layers.0", "layers.2"]},
        {"freeze": ["tok_embeddings", "layers"]},
        {"lora": {"rank": 3, "targets": ["layers.[123].*"]}},
    ],
    ids=["parts", "below", "all blocks", "adapters"],
)
def test_what_freezing_saves_is_what_is_not_computed(fine_tuning: dict[str, Any]) -> None:
    config = JobConfig.model_validate({"fine_tuning": fine_tuning})
    model, seq_len = make_model(config, DEBUG), 64
    tokens, positions = torch.zeros(2, seq_len, dtype=torch.long), torch.zeros(2, seq_len, dtype=torch.int32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, positions, torch.ones(2, 1, seq_len, seq_len, dtype=torch.bool)).sum().backward()
    rows = tokens.numel()
    expected = row_flops(DEBUG, seq_len, rows) - frozen_flops(DEBUG, sizes_of(config, DEBUG), rows, rows * seq_len)
    # norms are counted as if they multiplied, and the lowest block's inputs as if they all had gradients
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_a_row_of_one_document_that_sees_all_of_itself_is_worth_the_convention() -> None:
    pairs = 512 * 513 // 2
    assert document_flops(DEBUG.replace(causal=False), 512, pairs) == row_flops(DEBUG, 512, 512)
    assert document_flops(DEBUG, 512, pairs) < row_flops(DEBUG, 512, 512)


def test_work_is_counted_alike_however_rows_are_divided() -> None:
    parts = [batch(2, 64, seed) for seed in range(4)]
    whole = StepCounts.of(parts, 1)
    halves = StepCounts.of(parts[:1], 1).plus(StepCounts.of(parts[1:], 1))
    assert whole == halves


def test_the_hash_of_rows_covers_their_weights() -> None:
    rows = batch(2, 64, 0)
    weights = torch.ones(2, 64)
    weighted, other = replace(rows, weights=weights), replace(rows, weights=weights.index_fill(1, torch.tensor([3]), 0.5))
    hashes = {StepCounts.of([each], 1).rows_hash for each in (rows, weighted, other)}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("name", "bf16", "float8"),
    [
        ("NVIDIA H200", 989e12, 1979e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 1979e12),
        ("NVIDIA H100 PCIe", 756e12, 1513e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, None),
        ("NVIDIA A100 80GB PCIe", 312e12, None),
        ("NVIDIA B200", 2250e12, 4500e12),
        ("AMD Instinct MI300X", 1307e12, 2615e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090", None, None),
    ],
)
def test_a_device_has_the_peak_of_its_datasheet_or_none(name: str, bf16: float | None, float8: float | None) -> None:
    assert (named_peak(name, float8=False), named_peak(name, float8=True)) == (bf16, float8)


def test_a_stated_peak_goes_before_the_table_and_a_cpu_has_none() -> None:
    assert peak_flops(2e12, torch.device("cuda")) == 2e12
    assert peak_flops(None, torch.device("cpu")) is None


def test_utilisation_follows_from_the_steps_of_the_window(tmp_path: Path) -> None:
    config, _ = load_config([str(write_job(tmp_path)), "--metrics.peak_flops", "1e12", "--metrics.log_freq", "2"])
    folder = tmp_path / "run"
    folder.mkdir()
    log, progress = MetricsLog(folder, config, join(config), 0, DEBUG), Progress.start()
    totals = [StepCounts.of([batch(4, 64, seed)], 1) for seed in range(4)]
    for each in totals:
        progress.advance({"words": each.tokens[0]}, each.rows_hash)
        # values that the host has not read yet are taken as they are
        log.step(progress, each, Outcome(torch.tensor(2.5), torch.tensor(1.0), torch.tensor([2.5]), torch.tensor(0)), 0.25, 1.0)  # type: ignore[arg-type]
    log.close()
    records = metrics(tmp_path / "job.toml")
    assert [record["step"] for record in records] == [1, 2, 4]
    window = totals[2].plus(totals[3])
    tokens = sum(window.tokens)
    assert records[2]["tflops"] == pytest.approx(row_flops(DEBUG, 64, 1) * tokens / 2 / 1e12)
    assert records[2]["mfu"] == pytest.approx(records[2]["tflops"])
    assert records[2]["mfu_documents"] == pytest.approx(document_flops(DEBUG, tokens, window.causal_pairs) / 2 / 1e12)
    assert records[2]["data_wait"] == 0.25
    assert records[2]["memory_gib"] > 0.05
    assert records[2]["loss"] == 2.5


class FakeRun:
    """Remembers what a W&B run is told."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, {}, False  # type: ignore[var-annotated]

    def log(self, curves: dict[str, float], step: int) -> None:
        """One point of each curve."""
        self.logged[step] = curves

    def finish(self) -> None:
        """The end."""
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """In place of the package: the runs that were begun."""
    runs: list[FakeRun] = []
    fake = ModuleType("wandb")
    fake.__spec__ = ModuleSpec("wandb", None)
    fake.init = lambda **options: runs.append(FakeRun(**options)) or runs[-1]  # type: ignore[attr-defined, func-returns-value]
    fake.Error = ConnectionError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "proteins")
    monkeypatch.delenv("WANDB_NAME", raising=False)
    return runs


def test_weights_and_biases_has_every_number_of_every_record_and_a_resume_goes_on_with_the_same_run(
    wandb: list[FakeRun], tmp_path: Path
) -> None:
    config = write_job(tmp_path, steps=6)
    train_here(config, "--metrics.enable_wandb", "true", "--training.steps", "4")
    train_here(config, "--metrics.enable_wandb", "true")
    first, second = wandb
    assert first.finished
    assert second.options["id"] == first.options["id"]
    assert first.options["settings"] == {"init_timeout": 90.0}, "less than comm.timeout_seconds"
    assert (first.options["project"], first.options["name"], first.options["resume"]) == ("proteins", "run", "allow")
    assert second.options["config"]["training"]["steps"] == 6
    logged = first.logged | second.logged
    assert list(logged) == [1, 2, 3, 4, 5, 6]
    for record in metrics(config):
        assert logged[record["step"]] == MetricsRecord("metrics", record, "").curves
        assert logged[record["step"]]["loss"] == record["loss"]
    (tmp_path / "run" / "wandb_id").write_bytes(b"\xff/..")
    with pytest.raises(ConfigError, match=r"wandb_id: holds .*, which is no id of a W&B run"):
        train_here(config, "--metrics.enable_wandb", "true", "--training.steps", "7")
    train_here(config, "--metrics.enable_wandb", "true", "--checkpoint.load_step", "0", "--training.steps", "1")
    assert wandb[2].options["id"] != first.options["id"], "a run from the start is another one"


def test_a_refusal_by_weights_and_biases_is_a_refusal_of_the_job(
    wandb: list[FakeRun], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_key(**_: Any) -> None:
        raise ConnectionError("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", without_key)
    with pytest.raises(ConfigError, match="no API key") as caught:
        WeightsAndBiases(tmp_path, JobConfig(), 0)
    assert caught.value.passing, "a launcher's restart tries it again"
    message = refusal(capsys, write_job(tmp_path), "--metrics.enable_wandb", "true")
    assert "metrics.enable_wandb = true: no API key" in message
    assert not wandb


def test_weights_and_biases_is_asked_for_in_vain_where_it_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refusal(capsys, write_job(tmp_path), "--metrics.enable_wandb", "true")
    assert "metrics.enable_wandb = true" in message
    assert "pip install 'cistron[wandb]'" in message
    assert not (tmp_path / "run").exists()


def test_the_numbers_of_a_record_are_curves_and_what_is_unknown_is_left_out() -> None:
    record = json.loads(
        '{"step": 3, "loss": 2.0, "mfu": null, "rows_hash": "a1", "positions": {"0": 4.5, "2-3": 3.5},'
        ' "sources": {"dna": {"loss": 1.5, "tokens": 7}, "text": {"loss": null, "tokens": 0}}}'
    )
    assert MetricsRecord("validation", record, "").curves == {
        "validation/loss": 2.0,
        "validation/loss/dna": 1.5,
        "validation/tokens/dna": 7,
        "validation/tokens/text": 0,
        "validation/loss_at/0": 4.5,
        "validation/loss_at/2-3": 3.5,
    }


PLUGIN = """
from pathlib import Path

from cistron.trainer.config import SINKS
from cistron.trainer.metrics import MetricsRecord, Sink


@SINKS.add("losses_of_a_test", says="a line per record with its kind and loss, in losses.txt")
class Losses(Sink):
    def __init__(self, folder, config, start_step):
        self.file = folder / "losses.txt"

    def write(self, record):
        if record.step == 3:
            raise OSError("no room")
        with self.file.open("a") as lines:
            lines.write(f"{record.kind} {record.step} {record.curves['loss']!r}\\n")

    def close(self):
        self.file.rename(self.file.with_suffix(".closed"))
"""


def test_a_sink_of_a_plug_in_has_every_record_and_its_full_disk_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sink_of_a_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    for registered in ("_says", "_parts"):
        monkeypatch.setattr(SINKS, registered, dict(getattr(SINKS, registered)))
    config = write_job(tmp_path, steps=4)
    train_here(config, "--job.plugins", '["sink_of_a_test"]', "--metrics.sinks", '["losses_of_a_test"]')
    lines = [f"metrics {record['step']} {record['loss']!r}" for record in metrics(config) if record["step"] != 3]
    assert (tmp_path / "run" / "losses.closed").read_text().splitlines() == lines
    assert "warning: step 3 is not in Losses: no room" in capsys.readouterr().err

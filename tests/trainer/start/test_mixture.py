"""Several sources in one job: shares that change at their step, losses of each, and how such a run ends and resumes."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cistron.models.attention import DocumentMask
from cistron.models.decoder import Decoder
from cistron.tests.helpers.jobs import column, metrics, refusal, train, train_here, why_incomplete, write_job, write_mixture
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join, local
from cistron.trainer.train import Trainer

NAMES = ["words", "genes", "shards"]


def by_source(records: list[dict[str, Any]], key: str) -> dict[str, list[Any]]:
    """One of the numbers of each source, step by step."""
    return {name: [record["sources"][name][key] for record in records] for name in NAMES}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps on a mixture with weighted targets, on one process."""
    config = write_mixture(tmp_path_factory.mktemp("mixture"), weighted=True)
    train_here(config, "--checkpoint.interval", "3", "--metrics.enable_tensorboard", "true")
    return config


def test_a_mixture_takes_the_same_steps_on_two_processes_with_workers(straight: Path, tmp_path: Path) -> None:
    other_layout = ("--data.num_workers", "2", "--training.local_batch_size", "2")
    train(straight, "--job.dump_folder", str(tmp_path / "run"), *other_layout, processes=2)
    one, other = metrics(straight), metrics(tmp_path / "job.toml")
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert by_source(other, "tokens") == by_source(one, "tokens")
    for record, expected in zip(other, one, strict=True):
        losses, others = ({name: of["loss"] for name, of in r["sources"].items() if of["loss"]} for r in (expected, record))
        assert others == pytest.approx(losses, rel=1e-6)


def test_the_weights_of_a_stage_hold_from_its_step_on(straight: Path) -> None:
    tokens = by_source(metrics(straight), "tokens")
    grows = {name: [b > a for a, b in pairwise([0, *counts])] for name, counts in tokens.items()}
    assert grows["words"] == [True] * 10
    assert grows["genes"] == [True] * 4 + [False] * 6
    assert grows["shards"] == [False] * 4 + [True] * 6
    assert sum(counts[-1] for counts in tokens.values()) == metrics(straight)[-1]["tokens_seen"]


def test_a_source_without_targets_in_the_window_has_no_loss_and_the_others_have(straight: Path) -> None:
    losses = by_source(metrics(straight), "loss")
    assert losses["shards"][:4] == [None] * 4
    assert losses["genes"][4:] == [None] * 6
    assert all(loss > 0 for loss in losses["words"] + losses["shards"][4:])


def test_losses_and_tokens_of_sources_are_curves_of_their_own(straight: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight.parent / "run" / "tensorboard"))
    events.Reload()
    records = metrics(straight)
    assert [e.step for e in events.Scalars("loss/genes")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("tokens/words")] == by_source(records, "tokens")["words"]


def test_a_window_of_several_steps_weighs_its_targets_alike(straight: Path, tmp_path: Path) -> None:
    train_here(straight, "--job.dump_folder", str(tmp_path / "run"), "--metrics.log_freq", "4", "--training.steps", "10")
    window = metrics(tmp_path / "job.toml")[1]["sources"]["genes"]["loss"]  # steps 2 to 4
    steps = by_source(metrics(straight), "loss")["genes"][1:4]
    assert min(steps) < window < max(steps)


def test_loss_and_gradients_are_the_weighted_mean_of_a_float64_reference(tmp_path: Path) -> None:
    """On the rows of steps 6 and 7, which mix weighted shards and words without weights, in two micro-batches each."""
    config, _ = load_config([str(write_mixture(tmp_path, weighted=True)), "--training.max_norm", "1e9"])
    trainer = Trainer(config, join(config), StopRequest())
    seen = []
    fetch = trainer.fetch

    def remember() -> Any:
        parameters = {name: local(p).clone() for name, p in trainer.model.state_dict().items()}
        batches, error = fetch()
        seen.append((parameters, batches))
        return batches, error

    trainer.fetch = remember  # type: ignore[method-assign]
    trainer.train()
    trainer.close()
    records = metrics(tmp_path / "job.toml")
    for step in (6, 7):
        parameters, batches = seen[step - 1]
        reference = Decoder(trainer.decoder_config).double()
        reference.load_state_dict(parameters)
        mask = DocumentMask(eos_id=0, pad_id=1, executor="sdpa")
        nats, weights = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            assert batch.weights is not None
            logits = reference(batch.tokens, batch.positions, mask.build(batch.sequence_ids))
            each = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view_as(batch.labels)
            for row, source in enumerate(batch.sources):
                taken = batch.labels[row] >= 0
                nats[source] = nats[source] + (each[row] * batch.weights[row])[taken].sum()
                weights[source] += batch.weights[row][taken].sum()
        loss = nats.sum() / weights.sum()
        norm = torch.stack([g.norm() for g in torch.autograd.grad(loss, list(reference.parameters()))]).norm()
        record = records[step - 1]
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        for source in (0, 2):
            assert record["sources"][NAMES[source]]["loss"] == pytest.approx((nats / weights)[source].item(), rel=1e-6)


def test_a_resume_across_a_stage_goes_on_exactly(straight: Path, tmp_path: Path) -> None:
    folder = ("--job.dump_folder", str(tmp_path / "run"))
    train_here(straight, *folder, "--training.steps", "4", "--lr_scheduler.decay_ratio", "0")
    train_here(straight, *folder, "--lr_scheduler.decay_ratio", "0")
    again = metrics(tmp_path / "job.toml")
    train_here(straight, "--job.dump_folder", str(tmp_path / "other"), "--lr_scheduler.decay_ratio", "0")
    assert column(again, "loss") == column(metrics(tmp_path / "job.toml", "other"), "loss")
    assert column(again, "sources") == column(metrics(tmp_path / "job.toml", "other"), "sources")


def test_a_stage_that_has_begun_is_settled_and_a_later_one_is_not(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "job.toml"
    config.write_text(straight.read_text().replace(f"{straight.parent}/run", f"{tmp_path}/run"))
    train_here(config, "--training.steps", "6")

    begun = '[{"step": 5, "weights": {"shards": 1.0}}]'
    message = refusal(capsys, config, "--data.stages", begun)
    assert "data.stages" in message
    assert 'data.on_change = "restart" accepts it' in message
    for size in ("4", "16"):
        message = refusal(capsys, config, "--training.global_batch_size", size)
        assert "data.stages begin at steps" in message
        assert "keep that of the checkpoint" in message

    later = '[{"step": 5, "weights": {"words": 1.0, "shards": 3.0}}, {"step": 8, "weights": {"genes": 1.0}}]'
    train_here(config, "--data.stages", later)
    tokens = by_source(metrics(config), "tokens")
    assert tokens["words"][6] == tokens["words"][9]
    assert tokens["genes"][6] < tokens["genes"][9]


def test_changed_data_is_refused_by_name_or_begun_anew_where_the_job_accepts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_mixture(tmp_path, steps=6)
    train_here(config, "--training.steps", "3")
    genes = tmp_path / "genes.fasta"
    genes.write_text(genes.read_text() + ">new\nacgtacgt\n")
    message = refusal(capsys, config)
    assert f"{genes}" in message
    assert "step-3" in message
    assert 'data.on_change = "restart" accepts it' in message

    accept = ("--data.on_change", "restart")
    job, _ = load_config([str(config), *accept])
    trainer = Trainer(job, join(job), StopRequest())
    assert trainer.first_batch is not None
    assert trainer.first_batch.rows[0] == 3 * 8
    trainer.close()
    train_here(config, *accept)
    assert f"{genes}" in capsys.readouterr().out
    assert list(column(metrics(config), "loss")) == [1, 2, 3, 4, 5, 6]
    train_here(config, *accept, "--training.steps", "7")
    assert "anew" not in capsys.readouterr().out, "the data that the new checkpoint knows is there"


ONCE = '[{{"name": "genes", "format": "fasta", "paths": ["{folder}/genes.fasta"], "max_epochs": 1}}]'


def test_the_end_of_the_data_ends_all_ranks_saved_and_saying_which_source_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_mixture(tmp_path, steps=500)
    once = ONCE.format(folder=tmp_path)
    options = ("--data.stages", "[]", "--data.lanes", "4", "--metrics.log_freq", "500")
    train_here(config, *options, "--data.sources", once)
    ended = next(line for line in capsys.readouterr().out.splitlines() if "stopped after step" in line)
    assert "genes" in ended
    step = int(ended.split("after step ")[1].split(" ")[0])
    letters = sum(len(line) for line in (tmp_path / "genes.fasta").read_text().splitlines() if not line.startswith(">"))
    assert step == pytest.approx(letters / (8 * 64), rel=0.2), "one epoch of the file"
    newest = tmp_path / "run" / "checkpoint" / f"step-{step}"
    assert why_incomplete(newest) is None

    two = train(config, *options, "--data.sources", once, "--job.dump_folder", str(tmp_path / "two"), processes=2)
    assert ended in two

    train_here(config, *options, "--data.sources", once)
    assert ended in capsys.readouterr().out, "said again where it is resumed"
    twice = once.replace('"max_epochs": 1', '"max_epochs": 2')
    train_here(config, *options, "--data.sources", twice, "--training.steps", str(step + 1))
    assert f"saved {newest.with_name(f'step-{step + 1}')}" in capsys.readouterr().out


def test_records_that_are_skipped_are_logged_and_counted_at_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = write_job(tmp_path, steps=4)
    file = tmp_path / "corpus" / "0.jsonl"
    lines = file.read_text().splitlines()[:30]
    file.write_text("\n".join([*lines[:10], "no json", *lines[10:], ""]))
    (tmp_path / "corpus" / "1.jsonl").unlink()
    options = ("--data.lanes", "1", "--checkpoint.interval", "1")
    assert f"{file}, record 11" in refusal(capsys, config, *options)
    train_here(config, *options, "--data.on_bad_record", "skip")
    saves = [line for line in capsys.readouterr().out.splitlines() if line.startswith("saved")]
    counts = [int(line.split("left out so far: ")[1].split(" bad record(s)")[0]) if "left out" in line else 0 for line in saves]
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 8, "once an epoch"
    assert f"{file}, record 11" in caplog.text


def test_a_flipped_byte_in_a_shard_is_refused_by_file_where_verification_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_mixture(tmp_path, steps=1)
    ids = tmp_path / "shards" / "part-1.ids"
    data = bytearray(ids.read_bytes())
    data[3] = ord("C") if data[3] == ord("A") else ord("A")
    ids.write_bytes(data)
    message = refusal(capsys, config, "--data.verify", "true")
    assert str(ids) in message
    assert "checksum" in message
    train_here(config)  # only a pass over every token can tell


def test_the_padded_layout_trains_on_one_document_a_row_also_under_tensor_parallelism(tmp_path: Path) -> None:
    config = write_mixture(tmp_path, steps=6)
    padded = ("--data.layout", "padded", "--training.seq_len", "256")
    train_here(config, *padded)
    two = ("--job.dump_folder", str(tmp_path / "two"), "--parallelism.tensor_parallel_degree", "2")
    train(config, *padded, *two, processes=2)
    one, other = metrics(config), metrics(config, "two")
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert column(other, "loss") == pytest.approx(column(one, "loss"), rel=1e-5)
    assert set(column(one, "documents_per_row").values()) == {1.0}
    assert max(column(one, "packing_use").values()) > 0.2, "rows of 128 positions, not of 256, where that is enough"


def test_a_checkpoint_lists_the_files_that_its_data_state_is_about(straight: Path) -> None:
    inventory = json.loads((straight.parent / "run" / "checkpoint" / "step-9" / "inventory.json").read_text())
    assert {name: len(files) for name, files in inventory.items()} == {"words": 2, "genes": 1, "shards": 2}
    assert inventory["genes"][0][:2] == [str(straight.parent / "genes.fasta"), (straight.parent / "genes.fasta").stat().st_size]

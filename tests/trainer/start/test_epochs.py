"""Files of unequal sizes in training: each document as often on any number of processes; steps without a target."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.datasets.loading import Batch
from cistron.tests.helpers.corpora import words, write_jsonl
from cistron.tests.helpers.jobs import column, metrics, train, train_here, write_job
from cistron.trainer.metrics import Outcome, StepCounts
from cistron.trainer.train import Trainer


def test_each_document_is_trained_on_as_often_on_one_process_and_on_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents, cuts = words(90), [0, 10, 22, 33, 90]
    for number, (start, end) in enumerate(pairwise(cuts)):
        write_jsonl(tmp_path / f"{number}.jsonl.gz", documents[start:end])
    source = {"name": "odd", "format": "jsonl", "paths": [f"{tmp_path}/*.jsonl.gz"], "max_epochs": 2}
    config = write_job(tmp_path, steps=500)
    options = ("--data.sources", json.dumps([source]), "--data.lanes", "4", "--metrics.log_freq", "1")
    train_here(config, *options)
    said = capsys.readouterr().out
    ended = next(line for line in said.splitlines() if "stopped after step" in line)
    assert "source 'odd' was read data.sources.max_epochs = 2 times" in ended
    one = metrics(config)
    tokens = sum(len(text.encode()) + 1 for text in documents)
    assert one[-1]["tokens_seen"] == 2 * tokens
    assert max(column(one, "idle_rows").values()) > 0
    assert "  idle rows " in said

    other = train(config, *options, "--job.dump_folder", str(tmp_path / "two"), processes=2)
    assert ended in other
    assert column(metrics(config, "two"), "rows_hash") == column(one, "rows_hash")
    assert column(metrics(config, "two"), "loss") == pytest.approx(column(one, "loss"), rel=1e-4)


def test_a_step_whose_lanes_all_wait_changes_neither_weights_nor_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "long.txt").write_text("the lane of this file goes on " * 20)
    source = {"name": "odd", "format": "text", "paths": [f"{tmp_path}/*.txt"], "max_epochs": 2}
    config = write_job(tmp_path, steps=100)
    changed: list[tuple[bool, bool]] = []
    advance = Trainer.advance

    def watched(self: Trainer, batches: list[Batch], counts: StepCounts) -> Outcome:
        def now() -> list[Any]:
            moments = [value for state in self.optimizer.state.values() for value in state.values()]
            return [tensor.detach().clone() for tensor in [*self.model.parameters(), *moments]]

        before = now()
        outcome = advance(self, batches, counts)
        same = all(torch.equal(a, b) for a, b in zip(before, now(), strict=True))
        changed.append((any(counts.targets), not same))
        return outcome

    monkeypatch.setattr(Trainer, "advance", watched)
    options = ("--data.lanes", "2", "--training.global_batch_size", "1", "--optimizer.weight_decay", "0.1")
    train_here(config, "--data.sources", json.dumps([source]), *options, "--metrics.log_freq", "1")
    assert {targets for targets, _ in changed} == {True, False}
    assert all(targets == moved for targets, moved in changed)
    last = metrics(config)[-1]
    assert last["steps_without_targets"] == sum(not targets for targets, _ in changed)
    assert last["steps_skipped"] == 0

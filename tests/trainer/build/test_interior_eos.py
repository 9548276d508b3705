"""A job whose documents hold eos ids inside: the contract, the model, and the same losses on every layout."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cistron.datasets.rows import PackedRow, Packer
from cistron.models.attention import DocumentMask, document_block_mask
from cistron.tests.helpers.jobs import column, metrics, refusal, train, train_here, write_job
from cistron.tests.helpers.packed import LLAMA, QWEN, random_decoder
from cistron.tools import check, inspect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

EOS, PAD = 0, 1
IDS = '[data]\nlanes = 8\ninterior_eos = "keep"\n[[data.sources]]\nname = "words"\nformat = "jsonl_ids"\nfield = "ids"\n'


def write_ids_job(folder: Path, steps: int = 4, more: str = "") -> Path:
    """The job of `write_job` on lists of ids, a fifth of which are eos."""
    path = write_job(folder, steps, more)
    draw = random.Random(3)
    for file in (folder / "corpus").iterdir():
        lists = [draw.choices([EOS, 65, 66, 67, 68], k=draw.randint(1, 90)) for _ in range(200)]
        file.write_text("".join(json.dumps({"ids": [70, *ids]}) + "\n" for ids in lists))
    text = path.read_text()
    begin, end = text.index("[data]"), text.index("paths = ")
    path.write_text(text[:begin] + IDS + text[end:])
    return path


def packed(bodies: list[list[int]], seq_len: int) -> tuple[Any, list[list[int]]]:
    """One row of whole documents, and these."""
    documents: list[list[int]] = []
    for body in bodies:
        if sum(map(len, documents)) + len(body) + 2 <= seq_len:
            documents.append([5, *body, EOS])
    row = PackedRow([np.array(document) for document in documents])
    return Packer(seq_len, EOS, PAD, "best_fit").expand([row], [0]), documents


BODIES = st.lists(st.lists(st.sampled_from([EOS, EOS, 2, 3, PAD]), max_size=12), min_size=1, max_size=6)
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen"])
@few
@given(bodies=BODIES)
def test_a_packed_row_computes_what_its_documents_compute_alone(config: Any, bodies: list[list[int]]) -> None:
    planes, documents = packed(bodies, 48)
    model = random_decoder(config).double()
    tokens, positions, ids = (torch.from_numpy(plane) for plane in (planes.tokens, planes.positions, planes.sequence_ids))
    with torch.no_grad():
        together = model(tokens, positions, DocumentMask(EOS, PAD).build(ids))[0]
        at = 0
        for document in documents:
            length = len(document)
            alone = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
            own = model(torch.tensor([document]), torch.arange(length, dtype=torch.int32)[None], alone)[0]
            assert torch.allclose(together[at : at + length], own, rtol=0, atol=1e-12)
            at += length


@few
@given(bodies=BODIES, causal=st.booleans())
def test_the_block_mask_is_that_of_torch(bodies: list[list[int]], causal: bool) -> None:
    planes, _ = packed(bodies, 256)
    ids = torch.from_numpy(planes.sequence_ids)

    def rule(batch: Any, _: Any, q: Any, k: Any) -> Any:
        return (ids[batch, q] == ids[batch, k]) & ((q >= k) | (not causal))

    own, theirs = (
        document_block_mask(ids, causal, 128),
        create_block_mask(rule, 1, None, 256, 256, device="cpu", BLOCK_SIZE=128),
    )
    assert torch.equal(own.to_dense(), theirs.to_dense())
    dense = DocumentMask(EOS, PAD, causal=causal).build(ids)
    q, k = torch.arange(256)[:, None], torch.arange(256)
    assert torch.equal(dense[0, 0], rule(0, 0, q, k))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job of a finished run on one process, which others are compared with."""
    config = write_ids_job(tmp_path_factory.mktemp("one"))
    train_here(config)
    return config


@pytest.mark.parametrize("layout", ["data_parallel_shard", "context_parallel"])
def test_losses_are_those_of_one_process(one: Path, layout: str) -> None:
    train(one, f"--parallelism.{layout}_degree", "2", "--job.dump_folder", str(one.parent / layout), processes=2)
    alone, together = (column(metrics(one, run), "loss") for run in ("run", layout))
    assert together.keys() == alone.keys()
    for step, loss in alone.items():
        assert together[step] == pytest.approx(loss, rel=2e-5)


def test_another_value_is_another_order_of_the_data(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, one, "--training.steps", "6", "--data.interior_eos", "refuse")
    assert "data.interior_eos: checkpoint 'keep', now 'none'" in message


def test_check_and_inspect_tell_eos_ids_that_end_nothing(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.main(["--config", str(one)])
    said = " ".join(capsys.readouterr().out.split())
    assert "the packer's documents end in eos 0;" in said
    assert "more are inside of documents, where nothing ends" in said
    inspect.main(["--config", str(one), "--rows", "4", "--output", str(one.parent / "a.png")])
    shown = capsys.readouterr().out
    assert "␃" in shown
    assert "⏹" in shown


def test_a_document_that_does_not_end_at_an_eos_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original: Callable[..., Any] = Packer.expand

    def forgets_an_eos(self: Packer, rows: Any, numbers: Any) -> Any:
        planes = original(self, rows, numbers)
        row = int(planes.sequence_ids.max(1).argmax())
        planes.tokens[row, int((planes.sequence_ids[row] == 0).sum()) - 1] = 65
        return planes

    monkeypatch.setattr(Packer, "expand", forgets_an_eos)
    message = refusal(capsys, write_ids_job(tmp_path))
    assert "the packer ends document 0 at id 65, which is not the attention mask's eos 0" in message
    assert "where it is written" in message


def test_by_default_an_eos_inside_is_a_bad_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, write_ids_job(tmp_path), "--data.interior_eos", "refuse")
    assert "is the eos 0, inside of the document" in message
    assert "jsonl, record" in message


def test_text_with_a_looser_contract_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, write_job(tmp_path), "--data.interior_eos", "keep")
    assert 'data.interior_eos = "keep": text never holds an eos' in message

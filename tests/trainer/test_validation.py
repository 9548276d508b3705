"""Validation between steps: every document once, the same number in any layout, and its effect on the run."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.models.attention import DocumentMask
from cistron.models.decoder import Decoder
from cistron.tests.helpers.jobs import (
    column,
    graphs_alone,
    metrics,
    refusal,
    train_here,
    why_incomplete,
    write_job,
    write_shards,
)
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.evaluation import Evaluation
from cistron.trainer.processes import StopRequest, join, local
from cistron.trainer.train import Trainer
from cistron.trainer.validation import Validation, range_name

VALIDATION = """
[validation]
enable = true
freq = 3
[[validation.sources]]
name = "prose"
format = "jsonl"
paths = ["{folder}/prose.jsonl"]
[[validation.sources]]
name = "one"
format = "text"
paths = ["{folder}/one.txt"]
"""
ALONE = "the only document of its source"


def write_validated(folder: Path, steps: int = 7) -> Path:
    """The job of `write_job`, validated on 37 documents, two longer than a row, and on a source of a single one."""
    draw = random.Random(3)
    texts = [" ".join(draw.choices(["pack", "row", "naïve", "\u86cb"], k=draw.randint(1, 12))) for _ in range(35)]
    texts += ["long " * 40, "longer" * 32]
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "one.txt").write_text(ALONE)
    return write_job(folder, steps, VALIDATION.format(folder=folder))


def validations(config: Path, run: str = "run") -> list[dict[str, Any]]:
    """The records of validation.jsonl, without the time that they took."""
    lines = (config.parent / run / "validation.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def open_trainer(config: Path, *overrides: str) -> Trainer:
    """A job of this process before its first step."""
    job, _ = load_config([str(config), *overrides])
    return Trainer(job, join(job), StopRequest())


def validation_of(trainer: Trainer) -> Validation:
    """The validation among what a job evaluates."""
    return next(evaluation for evaluation in trainer.evaluations if isinstance(evaluation, Validation))


def values_of(trainer: Trainer, step: int) -> dict[str, Any]:
    """What a validation after some step finds."""
    record = validation_of(trainer).run(step, trainer.model, trainer.heartbeat)
    assert record is not None
    return record.values


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven steps on one process, validated as they go."""
    config = write_validated(tmp_path_factory.mktemp("validation"))
    train_here(config, "--metrics.enable_tensorboard", "true")
    return config


def test_validation_comes_after_the_first_step_at_its_period_and_after_the_last(straight: Path) -> None:
    assert [record["step"] for record in validations(straight)] == [1, 3, 6, 7]
    assert [record["step"] for record in metrics(straight)] == [1, 2, 3, 4, 5, 6, 7]


def test_training_takes_the_same_steps_with_and_without_validation(straight: Path, tmp_path: Path) -> None:
    train_here(straight, "--validation.enable", "false", "--job.dump_folder", str(tmp_path / "run"))
    assert column(metrics(tmp_path / "job.toml"), "loss") == column(metrics(straight), "loss")
    assert not (tmp_path / "run" / "validation.jsonl").exists()


TENSOR = ("--parallelism.tensor_parallel_degree", "2")
LAYOUTS = {
    2: [("--validation.local_batch_size", "3"), TENSOR, ("--parallelism.context_parallel_degree", "2")],
    4: [("--training.local_batch_size", "1"), (*TENSOR, "--parallelism.data_parallel_replicate_degree", "2")],
}


def of_initial_weights(config: str, folder: str, layouts: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    """The record of each layout, by the processes at hand."""
    records = []
    for number, layout in enumerate(layouts):
        trainer = open_trainer(Path(config), *layout, "--job.dump_folder", f"{folder}/{number}")
        records.append(values_of(trainer, 0))
        trainer.close()
    return records


def test_any_layout_finds_the_same_loss_of_the_same_documents(straight: Path, tmp_path: Path) -> None:
    expected, in_one_batch = of_initial_weights(str(straight), str(tmp_path), [(), ("--validation.local_batch_size", "64")])
    assert flat(in_one_batch) == pytest.approx(flat(expected), rel=1e-6)
    assert expected["documents"] == 38
    assert {name: of["documents"] for name, of in expected["sources"].items()} == {"prose": 37, "one": 1}
    for processes, layouts in LAYOUTS.items():
        for records in run_on_ranks(of_initial_weights, processes, str(straight), str(tmp_path / str(processes)), layouts):
            for record in records:
                assert flat(record) == pytest.approx(flat(expected), rel=1e-6)


def flat(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record that do not depend on the clock."""
    record = {key: value for key, value in record.items() if key != "seconds"}
    items = [(key, value if isinstance(value, dict) else {"": value}) for key, value in record.items()]
    numbers = {f"{key} {name}": value for key, table in items for name, value in table.items() if not isinstance(value, dict)}
    return numbers | {f"{name} {key}": v for name, of in record["sources"].items() for key, v in of.items()}


def test_the_record_is_what_a_float64_decoder_finds_document_by_document(straight: Path) -> None:
    """Each document, or fragment of a long one, in a row of its own, without packing, batches or a document mask."""
    trainer = open_trainer(straight)
    model = Decoder(trainer.decoder_config).double()
    model.load_state_dict({name: local(p) for name, p in trainer.model.state_dict().items()})
    trainer.close()
    mask = DocumentMask(eos_id=0, pad_id=1, executor="sdpa")
    texts = [json.loads(line)["text"] for line in (straight.parent / "prose.jsonl").read_text().splitlines()]
    nats: dict[str, list[float]] = {"prose": [], "one": []}
    places: dict[str, list[float]] = {}
    for name, text in [("one", ALONE), *(("prose", text) for text in texts)]:
        ids = torch.tensor([*text.encode(), 0])
        for begin in range(0, len(ids), 64):
            tokens, labels = ids[begin : begin + 64], ids[begin + 1 : begin + 65]
            positions = torch.arange(len(tokens))
            logits = model(tokens[None], positions[None].int(), mask.build(torch.zeros(1, len(tokens), dtype=torch.int32)))
            losses = F.cross_entropy(logits[0, : len(labels)], labels, reduction="none").tolist()
            nats[name] += losses
            for position, loss in enumerate(losses):
                first = 2 ** int(math.log2(position)) if position else 0
                places.setdefault(f"{first}-{2 * first - 1}" if first > 1 else str(first), []).append(loss)

    record = validations(straight)[-1]
    text_bytes = {"prose": sum(len(text.encode()) for text in texts), "one": len(ALONE)}
    for name, of in (*record["sources"].items(), ("all", record)):
        losses = nats[name] if name in nats else nats["prose"] + nats["one"]
        mean = sum(losses) / len(losses)
        assert of["loss"] == pytest.approx(mean, rel=1e-6)
        assert of["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
        size = text_bytes.get(name, sum(text_bytes.values()))
        assert of["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / size, rel=1e-6)
    means = {place: sum(losses) / len(losses) for place, losses in places.items()}
    assert record["positions"] == pytest.approx(means, rel=1e-6)
    assert list(record["positions"]) == ["0", "1", "2-3", "4-7", "8-15", "16-31", "32-63"]


def test_a_model_that_knows_nothing_needs_nine_bits_for_each_byte_of_512_ids(straight: Path, tmp_path: Path) -> None:
    """Of n bytes all but the first are targets, and the eos is: n targets of log2(512) bits."""
    trainer = open_trainer(straight, "--checkpoint.load_step", "0", "--job.dump_folder", str(tmp_path / "run"))
    with torch.no_grad():
        torch.nn.init.zeros_(trainer.model.output.weight)
    record = values_of(trainer, 5)
    trainer.close()
    assert record["step"] == 5
    assert record["bits_per_byte"] == pytest.approx(9.0, rel=1e-6)
    assert record["perplexity"] == pytest.approx(512.0, rel=1e-5)


def test_weights_of_targets_count_in_the_loss_and_not_in_bits_per_byte(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", weighted=True)
    source = json.dumps([{"name": "shards", "format": "tokens", "paths": [str(tmp_path / "shards")]}])
    options = ("--validation.enable", "true", "--validation.sources", source, "--data.verify", "true")
    trainer = open_trainer(write_job(tmp_path), *options)
    validation = validation_of(trainer)
    data = validation.data
    nats, weights, targets, plain, size = 0.0, 0.0, 0, 0.0, 0
    model = Decoder(trainer.decoder_config).double()
    model.load_state_dict({name: local(p) for name, p in trainer.model.state_dict().items()})
    mask = DocumentMask(eos_id=0, pad_id=1, executor="sdpa")
    with torch.no_grad():
        for batch in data.batches():
            logits = model(batch.tokens, batch.positions, mask.build(batch.sequence_ids))
            losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view_as(batch.labels)
            assert batch.weights is not None
            nats += float((losses * batch.weights).sum())
            weights += float(batch.weights.double().sum())
            targets += int((batch.weights > 0).sum())
            plain += float(losses[batch.weights > 0].sum())
            left_out = (batch.labels > 0) & (batch.weights == 0)
            size += int(((batch.sequence_ids >= 0) & (batch.tokens != 0)).sum()) - int(left_out.sum())
    record = values_of(trainer, 1)
    plainly = trainer.config.data.model_copy(update={"normalize_weights": False})
    validation.config = trainer.config.model_copy(update={"data": plainly})
    divided_by_targets = values_of(trainer, 2)
    trainer.close()
    assert record["documents"] == 400
    assert record["loss"] == pytest.approx(nats / weights, rel=1e-6)
    assert record["bits_per_byte"] == pytest.approx(plain / math.log(2) / size, rel=1e-6), "without targets of weight 0"
    assert divided_by_targets["loss"] == pytest.approx(nats / targets, rel=1e-6)
    assert "sources" not in record, "a single source is the whole"


def test_a_bounded_validation_reads_as_many_rows_as_that_many_steps(straight: Path, tmp_path: Path) -> None:
    overrides = ("--validation.steps", "1", "--training.global_batch_size", "4", "--job.dump_folder", str(tmp_path / "run"))
    trainer = open_trainer(straight, "--checkpoint.load_step", "0", *overrides)
    validation = validation_of(trainer)
    assert [b.rows for b in validation.data.batches(validation.limit)] == [[0, 1, 2, 3]]
    trainer.close()


def test_curves_of_validation_stand_beside_those_of_training(straight: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight.parent / "run" / "tensorboard"))
    events.Reload()
    records = validations(straight)
    assert [e.value for e in events.Scalars("validation/loss")] == pytest.approx([r["loss"] for r in records])
    assert [e.step for e in events.Scalars("validation/bits_per_byte/one")] == [1, 3, 6, 7]
    assert [e.value for e in events.Scalars("validation/loss_at/2-3")] == pytest.approx(
        [r["positions"]["2-3"] for r in records]
    )


def test_a_resume_validates_what_was_not_validated_and_drops_what_it_takes_again(straight: Path, tmp_path: Path) -> None:
    folder = ("--job.dump_folder", str(tmp_path / "run"), "--lr_scheduler.decay_ratio", "0")
    train_here(straight, *folder)
    again = validations(tmp_path / "job.toml")
    train_here(straight, *folder)  # there is nothing to do
    assert validations(tmp_path / "job.toml") == again
    train_here(straight, *folder, "--checkpoint.load_step", "4")
    assert validations(tmp_path / "job.toml") == again, "bit for bit"


def test_the_end_of_the_data_is_validated_too(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = json.dumps([{"name": "w", "format": "jsonl", "paths": [f"{straight.parent}/corpus/*.jsonl"], "max_epochs": 1}])
    options = ("--data.sources", source, "--data.lanes", "2", "--training.steps", "500", "--validation.freq", "499")
    train_here(straight, *options, "--job.dump_folder", str(tmp_path / "run"))
    ended = int(capsys.readouterr().out.split("stopped after step ")[1].split(" ")[0])
    assert [record["step"] for record in validations(tmp_path / "job.toml")] == [1, ended]


def test_a_stop_during_validation_ends_the_run_after_a_save_and_without_a_record(straight: Path, tmp_path: Path) -> None:
    trainer = open_trainer(straight, "--job.dump_folder", str(tmp_path / "run"), "--validation.local_batch_size", "1")
    data = validation_of(trainer).data
    batches, seen = data.batches, []

    def signalled(limit: int | None) -> Any:
        for batch in batches(limit):
            seen.append(batch)
            if len(seen) == 3:
                trainer.stop.signal_name = "SIGTERM"
            yield batch

    data.batches = signalled  # type: ignore[method-assign]
    trainer.train()
    trainer.close()
    assert len(seen) < 6, "polled before each batch"
    assert trainer.progress.step == 1
    assert why_incomplete(tmp_path / "run" / "checkpoint" / "step-1") is None
    assert not (tmp_path / "run" / "validation.jsonl").exists()


def test_a_bad_record_ends_the_run_saved_or_is_skipped(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\x00 and no text")
    files = [*([str(straight.parent / "one.txt")] * 1), str(bad)]
    source = json.dumps([{"name": "mixed", "format": "text", "paths": files}])
    options = ("--validation.sources", source, "--job.dump_folder", str(tmp_path / "run"))
    message = refusal(capsys, straight, *options)
    assert str(bad) in message, "within the first rows it is found before the first step"
    assert not (tmp_path / "run").exists()
    train_here(straight, *options, "--data.on_bad_record", "skip", "--training.steps", "1")
    assert validations(tmp_path / "job.toml")[0]["documents"] == 1


A = '{"name": "a", "format": "text", "paths": ["x"]}'


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("--validation.sources", "[]"), ("validation.sources", "name at least one")),
        (("--validation.steps", "0"), ("validation.steps = 0", "-1")),
        (("--validation.freq", "0"), ("validation.freq",)),
        (
            ("--validation.sources", '[{"name": "a", "format": "text", "paths": ["x"], "weight": 2.0}]'),
            ("validation.sources.0.weight", "unknown key"),
        ),
        (
            ("--validation.sources", '[{"name": "a", "format": "text", "paths": ["/no/file.txt"]}]'),
            ("/no/file.txt: there is no such file",),
        ),
        (("--validation.sources", f"[{A}, {A}]"), ("validation.sources", "names must differ")),
    ],
)
def test_what_cannot_be_validated_is_refused_before_the_first_step(
    straight: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = refusal(capsys, straight, *overrides)
    for word in words:
        assert word in message


def test_shards_of_another_tokenizer_break_the_contract_as_those_of_training_would(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "shards", shards=1)
    manifest = tmp_path / "shards" / "part-0.json"
    manifest.write_text(manifest.read_text().replace(ByteTokenizer.fingerprint, "another"))
    source = json.dumps([{"name": "shards", "format": "tokens", "paths": [str(tmp_path / "shards")]}])
    message = refusal(capsys, straight, "--validation.sources", source)
    assert str(manifest) in message
    assert "eos contract" in message


def test_compiled_blocks_compile_once_more_for_the_first_validation_and_never_again(straight: Path, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    options = ("--compile.enable", "true", "--validation.freq", "2", "--job.dump_folder", str(tmp_path / "run"))
    trainer = open_trainer(straight, *options)
    graphs = []
    evaluate = trainer.evaluate

    def counted(evaluations: Sequence[Evaluation]) -> None:
        graphs.append(counters["stats"]["unique_graphs"])
        evaluate(evaluations)
        graphs.append(counters["stats"]["unique_graphs"])

    trainer.evaluate = counted  # type: ignore[method-assign]
    with graphs_alone():
        trainer.train()
    trainer.close()
    trained, validated, *later = [count - graphs[0] for count in graphs]
    assert validated > trained
    assert set(later) == {validated}
    expected, found = (column(validations(path), "loss") for path in (straight, tmp_path / "job.toml"))
    assert found[1] == pytest.approx(expected[1], rel=1e-4)


def test_places_are_named_by_their_positions() -> None:
    assert [range_name(number) for number in range(6)] == ["0", "1", "2-3", "4-7", "8-15", "16-31"]

"""Training on labels of documents: in any layout, on the trunk of a language model, resumed, validated, refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.models.attention import DocumentMask
from cistron.models.errors import ModelError
from cistron.tests.helpers.jobs import column, metrics, refusal, train_here, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.build import make_model
from cistron.trainer.checkpoints import WholeTensors, read
from cistron.trainer.config import load_config
from cistron.trainer.huggingface import export
from cistron.trainer.inference import open_model, sample, score
from cistron.trainer.inference.embeddings import embed
from cistron.trainer.processes import StopRequest, join, local
from cistron.trainer.train import Trainer

LABELLED = """
[head]
classes = ["dead", "alive"]
[validation]
enable = true
freq = 3
[[validation.sources]]
name = "held out"
format = "tsv"
field = "seq"
label = "{label}"
paths = ["{folder}/valid.tsv"]
[[validation.sources]]
name = "few"
format = "jsonl"
field = "seq"
label = "{label}"
paths = ["{folder}/few.jsonl"]
"""
STEPS = 6
LAYOUTS: dict[int, list[str]] = {
    1: ["--data.layout padded"],
    2: [
        "",
        "--parallelism.tensor_parallel_degree 2",
        "--parallelism.tensor_parallel_degree 2 --activation_checkpoint.mode full --fine_tuning.lora.rank 2",
    ],
}


def records(count: int, seed: int) -> list[dict[str, Any]]:
    """Sequences that are alive where they hold more A than C, and how much more."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        sequence = "".join(draw.choices("ACGT", k=draw.randint(5, 50)))
        more = sequence.count("A") - sequence.count("C")
        made.append({"seq": sequence, "kind": "alive" if more > 0 else "dead", "more": more / 10})
    return made


def write_labelled(folder: Path, label: str = "kind", steps: int = STEPS) -> Path:
    """The job of `write_job` with labelled sequences in place of words."""
    config = write_job(folder, steps, LABELLED.format(folder=folder, label=label))
    text = config.read_text().replace("[training]", '[training]\nobjective = "classification"')
    if label == "more":
        text = text.replace('classes = ["dead", "alive"]', 'pool = "last"').replace('"classification"', '"regression"')
    text = text.replace('name = "words"', f'name = "words"\nfield = "seq"\nlabel = "{label}"')
    config.write_text(text.replace("lanes = 8", "lanes = 2").replace("interval = 4", "interval = 3"))
    for part in range(2):
        lines = [json.dumps(record) for record in records(200, part)]
        (folder / "corpus" / f"{part}.jsonl").write_text("\n".join(lines))
    rows = [["seq", "kind", "more"], *(map(str, record.values()) for record in records(60, 5))]
    (folder / "valid.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (folder / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(3, 6)))
    return config


def run_layouts(config: str, layouts: list[str]) -> None:
    """On every rank: the job in each layout, one after another, each in a folder of its number."""
    for number, layout in enumerate(layouts):
        folder = Path(config).parent / f"{torch.distributed.get_world_size()}-{number}"
        job, _ = load_config([config, *layout.split(), "--job.dump_folder", str(folder)])
        trainer = Trainer(job, join(job), StopRequest())
        trainer.train()
        trainer.close()


def validations(config: Path, run: str = "run") -> list[dict[str, Any]]:
    """The records of validation.jsonl, without the time that they took."""
    lines = (config.parent / run / "validation.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of classes, trained on one process and in the layouts of `LAYOUTS`."""
    config = write_labelled(tmp_path_factory.mktemp("labels"))
    train_here(config, "--metrics.enable_tensorboard", "true")
    for processes, layouts in LAYOUTS.items():
        run_on_ranks(run_layouts, processes, str(config), layouts)
    return config


def test_any_layout_takes_the_same_steps_and_predicts_the_same(job: Path) -> None:
    losses, expected = column(metrics(job), "loss"), flat(validations(job)[-1])
    assert {"accuracy", "matthews", "auroc", "sources/few/accuracy", "sources/held out/auroc"} <= expected.keys()
    assert expected["documents"] == 63
    for name in ("2-0", "2-1"):
        assert column(metrics(job, name), "loss") == pytest.approx(losses, rel=1e-5), name
        assert flat(validations(job, name)[-1]) == pytest.approx(expected, rel=1e-5), name
    # a padded row is one document, so that steps hold others; what is said before the first is of the same weights
    padded, packed = (validations(job, name)[0] for name in ("1-0", "run"))
    assert padded["documents"] == packed["documents"] == 63


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record by their path."""
    numbers = {}
    for key, value in record.items():
        numbers |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return numbers


def test_adapters_and_the_head_alone_are_trained_beside_a_frozen_trunk_under_tensor_parallelism(job: Path) -> None:
    losses = list(column(metrics(job, "2-2"), "loss").values())
    before, after = (WholeTensors(read(job.parent / "2-2" / "checkpoint" / f"step-{step}").path) for step in (3, 6))
    changed = {name for name in after.names() if not torch.equal(before.read(name), after.read(name))}
    assert "score.weight" in changed
    assert {name for name in changed if not name.endswith(("lora_a", "lora_b"))} == {"score.weight"}
    assert all(0 < loss < 3 for loss in losses)


def test_the_record_is_what_the_saved_model_says_of_each_document_alone(job: Path) -> None:
    found = read(job.parent / "run" / "checkpoint" / f"step-{STEPS}")
    model, weights = make_model(found.state.config, found.state.model), WholeTensors(found.path)
    model.load_state_dict({name: weights.read(name) for name in weights.names() if name in model.state_dict()})
    mask = DocumentMask(eos_id=0, pad_id=1, executor="sdpa")
    held_out = records(60, 5)
    nats, right = 0.0, 0
    for record in held_out:
        ids = torch.tensor([[*record["seq"].encode(), 0]])
        positions = torch.arange(ids.shape[1], dtype=torch.int32)[None]
        outputs = model(ids, positions, mask.build(torch.zeros_like(positions)))[0, 0].double()
        truth = ["dead", "alive"].index(record["kind"])
        nats -= outputs.log_softmax(0)[truth].item()
        right += int(outputs.argmax()) == truth
    said = validations(job)[-1]["sources"]["held out"]
    assert said["loss"] == pytest.approx(nats / 60, rel=1e-5)
    assert said["accuracy"] == right / 60


def test_a_resumed_run_goes_on_bit_for_bit(job: Path, tmp_path: Path) -> None:
    for steps in ("3", str(STEPS)):
        decay = ["--lr_scheduler.decay_ratio", "0"]
        train_here(job, "--job.dump_folder", str(tmp_path / "run"), "--training.steps", steps, *decay)
    train_here(job, "--job.dump_folder", str(tmp_path / "straight"), *decay)
    resumed, straight = (metrics(tmp_path / "job.toml", run) for run in ("run", "straight"))
    for key in ("loss", "grad_norm", "rows_hash"):
        assert column(resumed, key) == column(straight, key)


def test_values_are_regressed(tmp_path: Path) -> None:
    config = write_labelled(tmp_path, "more", steps=30)
    train_here(config)
    first, last = validations(config)[0], validations(config)[-1]
    assert last["mse"] == pytest.approx(last["loss"], rel=1e-5)
    assert last["mse"] < first["mse"]
    assert last["pearson"] > 0.3
    assert last["spearman"] > 0.3
    assert "perplexity" not in last


def test_a_head_begins_on_the_trunk_of_a_language_model(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_job(tmp_path / "base", steps=2)
    train_here(base)
    step = tmp_path / "base" / "run" / "checkpoint" / "step-2"
    start = ["--checkpoint.initial_load_path", str(step), "--job.dump_folder", str(tmp_path / "run")]
    config, _ = load_config([str(job), *start])
    trainer = Trainer(config, join(config), StopRequest())
    weights = WholeTensors(read(step).path)
    ours = {name: local(value) for name, value in trainer.model.state_dict().items()}
    trainer.close()
    assert set(weights.names()) - ours.keys() == {"output.weight"}
    assert ours.keys() - set(weights.names()) == {"score.weight"}
    for name in ours.keys() - {"score.weight"}:
        assert torch.equal(ours[name], weights.read(name)), name
    assert ours["score.weight"].std() > 0

    labelled = str(job.parent / "run" / "checkpoint" / f"step-{STEPS}")
    back = ["--checkpoint.initial_load_path", labelled, "--job.dump_folder", str(tmp_path / "back")]
    assert "head_outputs | 2          | 0" in refusal(capsys, base, *back)
    other = [*back, "--head.classes", '["dead", "alive", "2"]']
    assert "head_outputs | 2          | 3" in refusal(capsys, job, *other)


def test_a_model_of_labels_gives_embeddings_and_is_refused_where_tokens_are_asked_for(job: Path) -> None:
    opened = open_model(job.parent / "run" / "checkpoint", device="cpu")
    embedded = embed(opened, ["ACGT", "AAAA"], layer="norm")
    assert embedded.shape == (2, opened.model.config.dim)
    with pytest.raises(ModelError, match="with a head for labels predicts no tokens, so it cannot score"):
        score(opened, [])
    with pytest.raises(ModelError, match="cannot generate"):
        sample(opened, "ACGT")
    with pytest.raises(ModelError, match="this model has a head for labels of documents"):
        export(read(job.parent / "run" / "checkpoint" / f"step-{STEPS}"), job.parent / "exported", tokenizer=None)


WRONG = {
    "classification needs two or more": ["--head.classes", '["dead"]'],
    "training.loss_chunk_tokens = 64: is about logits of tokens": ["--training.loss_chunk_tokens", "64"],
    "head.classes = ['1', '1']: must differ": ["--head.classes", '["1", 1]'],
    "regression has values and no classes": ["--training.objective", "regression"],
    "data.sources.0.label = 'kind': training.objective = \"causal\" reads no labels": ["--training.objective", "causal"],
    'head: is not read with training.objective = "causal"': ["--training.objective", "causal"],
    'data.packing = "concat": cuts documents': ["--data.packing", "concat"],
    'data.long_documents = "truncate": a label is of the whole document': ["--data.long_documents", "truncate"],
    "data.lowercase_weight = 0.1: weighs tokens": ["--data.lowercase_weight", "0.1"],
    "data.normalize_weights = False: weighs tokens": ["--data.normalize_weights", "false"],
    "parallelism.context_parallel_degree = 2": ["--parallelism.context_parallel_degree", "2"],
    "data.sources.0.label: missing": ["--data.sources", '[{"name": "x", "format": "jsonl", "paths": ["x"]}]'],
    'format = "fasta" has no labels': ["--data.sources", '[{"name": "x", "format": "fasta", "paths": ["x"], "label": "y"}]'],
    "tokens, its eos included, and training.seq_len = 16": ["--training.seq_len", "16"],
    "head.classes are 'dead', 'undead'": ["--head.classes", '["dead", "undead"]'],
}


@pytest.mark.parametrize("message", list(WRONG))
def test_what_does_not_fit_together_is_refused(message: str, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(job.parent / "refused")
    assert message in refusal(capsys, job, *WRONG[message], "--job.dump_folder", folder)

"""The shipped configurations: the first line of each names the number and size of its GPUs, which it must fit."""

import json
import re
from pathlib import Path

import pytest
from cistron.datasets.loading import RowSettings
from cistron.datasets.loading.sources import open_source
from cistron.tests.helpers.jobs import brief_sample, train_here
from cistron.trainer.config import load_config
from cistron.trainer.estimates import estimate
from cistron.trainer.processes import Layout
from cistron.trainer.start import verify
from cistron.trainer.start.data import data_config, open_validation, row_settings

CONFIGS = Path(__file__).resolve().parents[1] / "train_configs"
FOR_GPUS = re.compile(r"(\d+) GPUs? of (\d+) GB")
SLACK = 0.9  # of the device: the allocator's fragments, the CUDA context, NCCL's buffers


def configs_for_gpus() -> list[object]:
    """The configurations whose first line names GPUs."""
    paths = [path for path in sorted(CONFIGS.glob("*.toml")) if FOR_GPUS.search(path.read_text().splitlines()[0])]
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.mark.parametrize("path", configs_for_gpus())
def test_a_configuration_fits_the_gpus_that_it_is_for(path: Path) -> None:
    found = FOR_GPUS.search(path.read_text().splitlines()[0])
    assert found
    gpus, gigabytes = map(int, found.groups())
    config, _ = load_config([str(path)])
    layout = Layout.resolve(config, gpus)
    _, decoder = verify(config, layout)
    peak = max(moment.size for moment in estimate(config, decoder, layout, "flex", "cuda"))
    assert peak < SLACK * gigabytes * 1e9
    assert peak > 0.1 * gigabytes * 1e9, "far fewer GPUs would do"


ALL = pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)


@pytest.mark.parametrize(
    "path", [path for path in sorted(CONFIGS.glob("*.toml")) if path.stem != "mixture"], ids=lambda path: path.stem
)
def test_a_configuration_names_files_that_there_are_and_more_pieces_of_them_than_lanes(path: Path) -> None:
    """But for the mixture's: its reader makes them."""
    config, _ = load_config([str(path)])
    layout = Layout.resolve(config, next((int(n) for n, _ in FOR_GPUS.findall(path.read_text().splitlines()[0])), 1))
    tokenizer, _ = verify(config, layout)
    data = data_config(config)
    for source in data.sources:
        open_source(source, data.lanes or 16, RowSettings(seq_len=config.training.seq_len, seed=0, batch_size=1), data)
    open_validation(config, tokenizer, row_settings(config, layout, tokenizer, batch_size=1))


@pytest.mark.parametrize(("base", "tuned"), [("dna_debug", "finetune_promoter"), ("debug", "longcontext_yarn")])
def test_a_configuration_begins_where_another_ends(base: str, tuned: str) -> None:
    before, after = (load_config([str(CONFIGS / f"{name}.toml")])[0] for name in (base, tuned))
    step = f"{before.job.dump_folder}/{before.checkpoint.folder}/step-{before.training.steps}"
    assert after.checkpoint.initial_load_path == step
    rope, plain = after.model.rope, before.model.rope
    assert (after.model.model_copy(update={"rope": plain}), after.tokenizer) == (before.model, before.tokenizer)
    if rope != plain:
        assert rope.original_seq_len == before.training.seq_len
        assert rope.factor == after.training.seq_len / before.training.seq_len


@ALL
def test_a_configuration_is_named_where_it_says_how_to_run_it(path: Path) -> None:
    comments = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"train_configs/{path.name}" in comments or path.stem == "debug", "debug is what runs without a name"


def test_the_promoter_task_is_learnt_from_a_genome_full_and_by_adapters(tmp_path: Path) -> None:
    """In small: fewer and narrower layers, and a hundredth of the steps."""
    shape = {"dim": "64", "n_layers": "2", "head_dim": "16", "hidden_dim": "128"}
    small = [word for key, value in shape.items() for word in (f"--model.{key}", value)]
    small += ["--metrics.enable_tensorboard", "false", "--metrics.log_freq", "100"]
    base = ["--job.dump_folder", str(tmp_path / "base"), "--training.steps", "2", "--checkpoint.interval", "2"]
    with brief_sample():
        train_here(CONFIGS / "dna_debug.toml", *small, *base)
    start = ["--checkpoint.initial_load_path", str(tmp_path / "base" / "checkpoint" / "step-2")]
    steps = ["--training.steps", "40", "--validation.steps", "8", "--validation.freq", "100"]
    adapters = ["--fine_tuning.lora.rank", "8", "--optimizer.lr", "1e-2"]
    for name, more in (("full", ["--optimizer.lr", "3e-3"]), ("lora", adapters)):
        folder = tmp_path / name
        train_here(CONFIGS / "finetune_promoter.toml", *small, *start, *steps, *more, "--job.dump_folder", str(folder))
        first, last = (json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines())
        assert first["documents"] == last["documents"] > 300
        assert last["loss"] < min(first["loss"], 0.685), f"{name}: chance has 0.693"
        assert last["auroc"] > 0.65, name

"""The shipped configurations: each says in its first line for how many GPUs it is and of what size, and must fit them."""

import re
from pathlib import Path

import pytest
from cistron.datasets.sources import find_source
from cistron.trainer.components import verify
from cistron.trainer.config import load_config
from cistron.trainer.data import make_data_config, open_validation
from cistron.trainer.distributed import Layout
from cistron.trainer.memory import estimate

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
    data = make_data_config(config, layout, tokenizer)
    for source in data.sources:
        find_source(source, data.lanes, data.seq_len, data.storage)
    open_validation(config, layout, tokenizer, batch_size=1)


@pytest.mark.parametrize(("base", "tuned"), [("dna_debug", "finetune_promoter")])
def test_a_configuration_begins_where_another_ends(base: str, tuned: str) -> None:
    before, after = (load_config([str(CONFIGS / f"{name}.toml")])[0] for name in (base, tuned))
    step = f"{before.job.dump_folder}/{before.checkpoint.folder}/step-{before.training.steps}"
    assert after.checkpoint.initial_load_path == step
    assert (after.model, after.tokenizer) == (before.model, before.tokenizer)


@ALL
def test_a_configuration_is_named_where_it_says_how_to_run_it(path: Path) -> None:
    comments = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"train_configs/{path.name}" in comments or path.stem == "debug", "debug is what runs without a name"

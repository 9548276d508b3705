"""The shipped configurations: each says in its first line for how many GPUs it is and of what size, and must fit them."""

import re
from pathlib import Path

import pytest
from cistron.trainer.components import verify
from cistron.trainer.config import load_config
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_configuration_is_named_where_it_says_how_to_run_it(path: Path) -> None:
    comments = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"train_configs/{path.name}" in comments or path.stem == "debug", "debug is what runs without a name"

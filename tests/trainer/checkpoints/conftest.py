"""A finished run that the tests of checkpoints look at, and copies of it that they damage."""

import shutil
from pathlib import Path

import pytest
from cistron.tests.helpers.jobs import train_here, write_job


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of eight steps, with checkpoints of steps 4 and 8."""
    config = write_job(tmp_path_factory.mktemp("straight"), steps=8)
    train_here(config)
    return config


@pytest.fixture
def finished(straight: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(straight.parent / "run", tmp_path / "run")
    config = tmp_path / "job.toml"
    config.write_text(straight.read_text().replace(f'dump_folder = "{straight.parent}', f'dump_folder = "{tmp_path}'))
    return config

"""A job is examined once, before its processes join."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from cistron.base import UserError
from cistron.tests.helpers.jobs import train_here, write_job
from cistron.trainer.build import make_tokenizer
from cistron.trainer.config import load_config
from cistron.trainer.start import Launch


def test_a_run_loads_its_tokenizer_once(tmp_path: Path) -> None:
    with patch.object(sys.modules["cistron.trainer.start.verify"], "make_tokenizer", wraps=make_tokenizer) as made:
        train_here(write_job(tmp_path, steps=1), "--checkpoint.enable", "false")
    assert made.call_count == 1


def test_a_refused_job_has_no_parts(tmp_path: Path) -> None:
    launch, job = Launch(1), ["--config", str(write_job(tmp_path))]
    with pytest.raises(UserError, match=r"training\.local_batch_size = 3"):
        load_config([*job, "--training.local_batch_size", "3"], further=launch.complaints)
    assert launch.parts is None
    load_config(job, further=launch.complaints)
    assert launch.parts

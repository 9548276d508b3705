"""Spikes: the rule against plain Python, what enters the window; nothing is read from the device or lost in a save."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.tests.helpers.jobs import column, metrics, train_here, write_job
from cistron.trainer.checkpoints import SpikeWindowState
from cistron.trainer.config import load_config
from cistron.trainer.optim import StepGuard
from cistron.trainer.optim.spikes import SpikeWindow
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

SKIP = ("--skip_step.enable", "true", "--skip_step.window", "20")


def judge(series: list[tuple[float, float]], sigma: float, length: int) -> list[tuple[float, float]]:
    """The limits of every step of a series of losses and norms, by Python's own statistics."""
    windows: tuple[list[float], list[float]] = ([], [])
    limits = []
    for values in series:
        limit = [math.inf, math.inf]
        if len(windows[0]) >= max(20, length // 2):
            limit = [statistics.mean(w) + sigma * statistics.stdev(w) for w in windows]
        limits.append((limit[0], limit[1]))
        if all(map(math.isfinite, values)):
            for window, value, most in zip(windows, values, limit, strict=True):
                window.append(min(value, most))
                del window[:-length]
    return limits


@pytest.mark.parametrize(("sigma", "length"), [(6.0, 64), (1.5, 20)])
def test_limits_are_those_of_the_rule_also_after_a_save_in_the_middle(sigma: float, length: int) -> None:
    """Through spikes, steps that are not finite, and a lasting change of level."""
    draw = random.Random(0)
    series = [(draw.gauss(3, 0.1) + 5 * (n > 250), math.exp(draw.gauss(0, 0.3))) for n in range(400)]
    for n in (40, 90, 91, 200):
        series[n] = (draw.uniform(3, 30), 100.0)
    series[95], series[150] = (math.nan, 1.0), (3.0, math.inf)
    window, found = SpikeWindow(sigma, length, torch.device("cpu")), []
    for n, values in enumerate(series):
        if n in (7, 170):
            saved, window = window.state().model_dump_json(), SpikeWindow(sigma, length, torch.device("cpu"))
            window.load(SpikeWindowState.model_validate_json(saved))
            assert window.state().model_dump_json() == saved
        found.append(tuple(window.watch(torch.tensor(values)).tolist()))
    assert torch.tensor(found).isfinite().all(1).sum() > 300
    torch.testing.assert_close(torch.tensor(found), torch.tensor(judge(series, sigma, length)), rtol=1e-5, atol=0)


def spikes_of(series: list[float], length: int = 128) -> list[int]:
    """Which values of a series are above their limit."""
    window = SpikeWindow(6.0, length, torch.device("cpu"))
    return [n for n, value in enumerate(series) if value > window.watch(torch.full((2,), value))[0]]


def test_a_large_spike_does_not_hide_the_next_and_a_new_level_is_accepted_in_the_end() -> None:
    draw = random.Random(0)
    noise = [draw.gauss(0, 1) for _ in range(600)]
    assert spikes_of(noise) == []
    assert spikes_of([*noise[:200], 1000.0, *noise[200:210], 20.0, *noise[210:]]) == [200, 211]
    accepted = {10: 5, 100: 22, 1_000_000: 98}
    for level, steps in accepted.items():
        refused = spikes_of([*noise[:400], *(level + x for x in noise)])
        assert refused == list(range(400, 400 + len(refused)))
        assert len(refused) == pytest.approx(steps, abs=2)
    assert spikes_of([*[2.5] * 100, 2.6, *[2.5] * 100]) == [], "no spread, nothing to judge by"


def test_a_shorter_window_takes_the_newest_values_of_a_longer_one() -> None:
    values = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    longer, shorter, other = (SpikeWindow(6.0, length, torch.device("cpu")) for length in (40, 25, 25))
    for step in values:
        longer.watch(step)
        other.watch(step)
    shorter.load(longer.state())
    assert torch.equal(shorter.watch(values[0]), other.watch(values[0]))


class OnMeta(TorchDispatchMode):
    """Refuses operations whose result is on another device than meta: it would have to be copied there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it and look."""
        result = function(*args, **(kwargs or {}))
        assert not isinstance(result, torch.Tensor) or result.is_meta, function
        return result


def test_no_step_reads_from_the_device_or_sends_to_it(tmp_path: Path) -> None:
    """Tensors of the meta device have no values: reading one fails."""
    config, _ = load_config([str(write_job(tmp_path)), *SKIP])
    meta = torch.device("meta")
    guard, some = StepGuard(nn.Linear(2, 2), config, meta), torch.empty((), device=meta)
    with OnMeta():
        for step in (1, 2):
            skip = guard.watch(step, some, some, some, [some, some])
            assert skip.shape == guard.skipped.shape == ()
        with pytest.raises(RuntimeError, match="meta"):
            guard.state()


def test_a_resume_skips_what_the_undisturbed_run_skips(tmp_path: Path) -> None:
    """A sigma of 1 and a tiny learning rate, so that the noise of ordinary steps is above the limit."""
    config = write_job(tmp_path, steps=40)
    overrides = (*SKIP, "--skip_step.sigma", "1.0", "--optimizer.lr", "1e-5", "--checkpoint.interval", "100")
    overrides = (*overrides, "--lr_scheduler.decay_ratio", "0.0")
    parted = (*overrides, "--job.dump_folder", str(tmp_path / "parted"))
    train_here(config, *overrides)
    train_here(config, *parted, "--training.steps", "25")
    train_here(config, *parted)
    for key in ("loss", "steps_skipped"):
        assert column(metrics(config, "parted"), key) == column(metrics(config), key)
    skipped = column(metrics(config), "steps_skipped")
    assert 0 == skipped[20] < skipped[25] < skipped[26] < skipped[40] < 10
    states = [json.loads((tmp_path / f"{run}/checkpoint/step-40/state.json").read_text()) for run in ("run", "parted")]
    assert states[0]["guard"] == states[1]["guard"]
    assert len(states[0]["guard"]["window"]["loss"]) == 20

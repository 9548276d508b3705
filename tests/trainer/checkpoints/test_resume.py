"""A run that was killed, stopped, or moved to other processes goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from cistron.tests.helpers.jobs import (
    column,
    fork,
    metrics,
    refusal,
    start,
    train,
    train_here,
    train_until,
    wait_for_step,
    why_incomplete,
    write_job,
    write_mixture,
)
from cistron.tests.helpers.ranks import Command, run_on_ranks
from cistron.trainer.checkpoints import Folder
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join, local
from cistron.trainer.train import Trainer, run
from torch.multiprocessing import ProcessExitedException

STEPS = 16


def copy_job(job: Path, folder: Path) -> Path:
    """The same job with a run of its own; the corpus stays, since its path is part of what a checkpoint remembers."""
    config = folder / "job.toml"
    config.write_text(job.read_text().replace(f"{job.parent}/run", f"{folder}/run"))
    return config


def start_until(step: int, config: Path, *overrides: str, processes: int = 1) -> subprocess.Popen[str] | Command:
    """Start the command line, under torchrun or in a fork, and return once `step` is logged."""
    running = start(config, *overrides, processes=processes) if processes > 1 else fork(config, *overrides)
    wait_for_step(config, step, lambda: running.poll() is None)
    return running


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The undisturbed run on so many processes."""
    done: dict[int, Path] = {}

    def run(processes: int) -> Path:
        if processes not in done:
            folder = tmp_path_factory.mktemp(f"straight{processes}")
            first = next(iter(done.values()), None)
            done[processes] = copy_job(first, folder) if first else write_job(folder, STEPS)
            train(done[processes], processes=processes)
        return done[processes]

    return run


@pytest.mark.parametrize(("processes", "workers", "torchrun"), [(1, 0, False), (1, 2, False), (2, 0, False), (2, 1, True)])
def test_a_run_killed_at_any_moment_resumes_bit_for_bit(
    tmp_path: Path, reference: Callable[[int], Path], processes: int, workers: int, torchrun: bool
) -> None:
    undisturbed = reference(processes)
    config = copy_job(undisturbed, tmp_path)
    options = ("--data.num_workers", str(workers), "--checkpoint.interval", "2")
    draw = random.Random(processes * 10 + workers)
    step, seconds = draw.randint(6, 12), draw.uniform(0, 0.1)
    if torchrun:
        running = start_until(step, config, *options, processes=processes)
        time.sleep(seconds)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    else:
        train_until(step, config, *options, processes=processes, seconds=seconds)
    output = train(config, *options, processes=processes)
    assert "resumed from" in output
    assert column(metrics(config), "loss") == column(metrics(undisturbed), "loss")
    assert column(metrics(config), "rows_hash") == column(metrics(undisturbed), "rows_hash")


@pytest.mark.parametrize(("before", "after"), [((2, 2), (1, 0)), ((1, 0), (2, 2))])
def test_a_run_moves_to_other_ranks_and_workers_and_sees_the_same_rows(
    tmp_path: Path, reference: Callable[[int], Path], before: tuple[int, int], after: tuple[int, int]
) -> None:
    undisturbed = reference(1)
    config = copy_job(undisturbed, tmp_path)
    train_until(6, config, "--data.num_workers", str(before[1]), processes=before[0])
    train(config, "--data.num_workers", str(after[1]), processes=after[0])
    assert column(metrics(config), "rows_hash") == column(metrics(undisturbed), "rows_hash")
    assert column(metrics(config), "loss") == pytest.approx(column(metrics(undisturbed), "loss"), abs=1e-5)


def workers_of(running: subprocess.Popen[str] | Command) -> list[int]:
    """Process ids of a run's loader workers."""
    threads = Path(f"/proc/{running.pid}/task").glob("*/children")
    children = [pid for children in threads for pid in children.read_text().split()]
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_killed_worker_ends_training_with_a_message_and_a_restart_resumes_bit_for_bit(tmp_path: Path) -> None:
    """On a mixture of token shards and raw files."""
    config = write_mixture(tmp_path, steps=70)
    train_here(config, "--job.dump_folder", str(tmp_path / "undisturbed"), "--checkpoint.interval", "1000")
    options = ("--data.num_workers", "2", "--checkpoint.interval", "10")
    running = start_until(12, config, *options)
    workers = workers_of(running)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "stopped: " in output
    assert "worker" in output.split("stopped: ")[1]
    assert "Traceback" not in output
    assert max(column(metrics(config), "loss")) < 70

    train_here(config, "--checkpoint.interval", "1000")
    assert column(metrics(config), "loss") == column(metrics(config, "undisturbed"), "loss")
    assert column(metrics(config), "sources") == column(metrics(config, "undisturbed"), "sources")


def die_before_the_manifest_of_step_8(config: str) -> None:
    """Train in this process, which kills itself where a save is about to count."""
    write = Folder.write_atomically

    def write_or_die(folder: Folder, name: str, text: str) -> tuple[int, str]:
        if name == "manifest.json" and folder.name == "step-8":
            os.kill(os.getpid(), signal.SIGKILL)
        return write(folder, name, text)

    with patch.object(Folder, "write_atomically", write_or_die):
        run(["--config", config])


def test_a_run_killed_in_the_middle_of_a_save_resumes_bit_for_bit(tmp_path: Path, reference: Callable[[int], Path]) -> None:
    undisturbed = reference(1)
    config = copy_job(undisturbed, tmp_path)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_on_ranks(die_before_the_manifest_of_step_8, 1, str(config))
    folder = tmp_path / "run" / "checkpoint" / "step-8"
    assert why_incomplete(folder) == "no manifest.json: it was interrupted while being written"

    assert f"passed over {folder}" in train(config)
    assert column(metrics(config), "loss") == column(metrics(undisturbed), "loss")


@pytest.mark.parametrize(("processes", "sig"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_stop_signal_finishes_the_step_saves_and_says_so(
    tmp_path: Path, reference: Callable[[int], Path], processes: int, sig: signal.Signals
) -> None:
    undisturbed = reference(processes)
    config = copy_job(undisturbed, tmp_path)
    running = start_until(2, config, "--checkpoint.interval", "1000", processes=processes)
    os.killpg(running.pid, sig)
    output, _ = running.communicate(timeout=60)
    assert f"{sig.name}: stopped after step" in output
    if processes == 1:  # torchrun itself answers a signal with a status and a traceback of its own
        assert running.returncode == 0
        assert "Traceback" not in output
    saved = [path for path in (tmp_path / "run" / "checkpoint").iterdir() if why_incomplete(path) is None]
    assert len(saved) == 1

    train(config, processes=processes)
    assert column(metrics(config), "loss") == column(metrics(undisturbed), "loss")


def test_a_stop_while_waiting_for_data_saves_what_was_done(tmp_path: Path) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path))])
    stop = StopRequest()
    trainer = Trainer(config, join(config), stop)
    fetched = trainer.data.loader.next

    def stuck_after_three(interrupted: Callable[[], bool]) -> object:
        if trainer.progress.step == 3:
            stop.signal_name = "SIGTERM"
            assert interrupted(), "the wait is told"
            return None
        return fetched(interrupted)

    trainer.data.loader.next = stuck_after_three  # type: ignore[method-assign, assignment]
    trainer.train()
    trainer.close()
    assert why_incomplete(tmp_path / "run" / "checkpoint" / "step-3") is None


def test_a_torn_checkpoint_is_passed_over_saying_so_and_refused_when_named(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = finished.parent / "run" / "checkpoint" / "step-8"
    before = column(metrics(finished), "loss")
    data = max(newest.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:-100])
    message = refusal(capsys, finished, "--checkpoint.load_step", "8")
    assert str(newest) in message
    assert data.name in message
    train_here(finished)
    output = capsys.readouterr().out
    assert f"passed over {newest}: {data.name} has" in output
    assert f"resumed from {newest.with_name('step-4')}" in output
    assert column(metrics(finished), "loss") == before


def test_a_save_cut_off_before_its_manifest_does_not_count(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = finished.parent / "run" / "checkpoint" / "step-8"
    (newest / "manifest.json").unlink()
    train_here(finished)
    assert "it was interrupted while being written" in capsys.readouterr().out
    assert why_incomplete(newest) is None, "the same step was saved anew in its place"


def test_a_refused_resume_changes_nothing_on_disk(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished.parent / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for wrong in (("--model.eos_id", "7"), ("--model.n_layers", "1"), ("--data.packing", "concat")):
        refusal(capsys, finished, "--checkpoint.load_step", "4", *wrong)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_fresh_start_in_a_used_folder_sets_its_history_aside(finished: Path) -> None:
    run = finished.parent / "run"
    history = (run / "metrics.jsonl").read_text()
    train_here(finished, "--checkpoint.enable", "false", "--training.steps", "2")
    assert (run / "metrics.jsonl.aside").read_text() == history
    assert [record["step"] for record in metrics(finished)] == [1, 2]


def test_a_finished_run_says_that_there_is_nothing_to_train(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(finished, "--training.steps", "5")
    assert "nothing to train: the checkpoint is of step 8, training.steps is 5" in capsys.readouterr().out


def test_damage_to_every_checkpoint_is_refused_instead_of_starting_afresh(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished.parent / "run" / "checkpoint"
    for step in ("step-4", "step-8"):
        (folder / step / "tensors.json").unlink()
    message = refusal(capsys, finished)
    assert "every checkpoint is damaged" in message
    assert f"passed over {folder}/step-4: tensors.json is missing" in message
    train_here(finished, "--checkpoint.load_step", "0")
    assert {path.name for path in folder.iterdir()} == {"step-4", "step-8", "step-4.aside", "step-8.aside"}


def test_load_step_goes_back_and_sets_later_checkpoints_aside(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = column(metrics(finished), "loss")
    train_here(finished, "--checkpoint.load_step", "4", "--training.steps", "6")
    folder = finished.parent / "run" / "checkpoint"
    assert "set aside" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"step-4", "step-6", "step-8.aside"}
    after = column(metrics(finished), "loss")
    assert sorted(after) == [1, 2, 3, 4, 5, 6]
    assert after[5] == before[5]
    assert "step-9" in refusal(capsys, finished, "--checkpoint.load_step", "9")


def test_only_the_latest_k_checkpoints_are_kept(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=7)
    train_here(config, "--checkpoint.interval", "2", "--checkpoint.keep_latest_k", "2")
    assert {path.name for path in (tmp_path / "run" / "checkpoint").iterdir()} == {"step-6", "step-7"}


def test_optimizer_settings_may_change_on_resume(finished: Path) -> None:
    options = [
        "--config",
        str(finished),
        "--training.steps",
        "9",
        "--optimizer.weight_decay",
        "0.5",
        "--optimizer.beta2",
        "0.5",
    ]
    config, _ = load_config(options)
    trainer = Trainer(config, join(config), StopRequest())
    matrices, vectors = trainer.optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"], matrices["betas"]) == (0.5, 0.0, (0.9, 0.5))
    moments = [local(trainer.optimizer.state[p]["exp_avg_sq"]).abs().sum() for p in matrices["params"]]
    assert min(moments) > 0, "the moments are the checkpoint's"
    trainer.close()


def test_weights_of_another_run_start_a_new_one_and_a_different_shape_is_refused_by_key(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(finished.parent / "run" / "checkpoint" / "step-8")
    fresh = ("--job.dump_folder", str(finished.parent / "other"), "--checkpoint.initial_load_path", path)
    train_here(finished, *fresh, "--training.steps", "1", "--optimizer.lr", "1e-9")
    continued = metrics(finished, "other")[0]["loss"]
    losses = column(metrics(finished), "loss")
    assert continued < losses[4] < losses[1]
    shutil.rmtree(finished.parent / "other")
    message = refusal(capsys, finished, *fresh, "--model.hidden_dim", "32")
    assert "hidden_dim | 64         | 32" in message


def test_data_settings_that_would_change_the_rows_are_refused_on_resume(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, finished, "--data.packing", "concat", "--training.steps", "12")
    assert "data.packing: checkpoint 'best_fit', now 'concat'" in message
    assert "step-8" in message


def test_the_resolved_configuration_lies_beside_the_run_and_in_the_checkpoint(straight: Path) -> None:
    run = straight.parent / "run"
    config, _ = load_config(["--config", str(straight)])
    assert load_config(["--config", str(run / "config.toml")])[0].to_dict() == config.to_dict()
    assert json.loads((run / "checkpoint" / "step-8" / "state.json").read_text())["config"] == config.to_dict()

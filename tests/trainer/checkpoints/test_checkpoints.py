"""What a checkpoint holds, what makes it count, and what becomes of a run when the disk fails it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.tests.helpers.jobs import Case, column, forge, metrics, refusal, train_here, why_incomplete, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.checkpoints import Folder, Saver, WholeTensors, read, read_newest, write_whole
from cistron.trainer.checkpoints.dcp import HostBuffer
from cistron.trainer.checkpoints.format import step_folders
from cistron.trainer.config import load_config
from cistron.trainer.errors import CheckpointError
from cistron.trainer.metrics.sinks import JsonLines
from cistron.trainer.processes import StopRequest, join, run_command
from cistron.trainer.train import Trainer
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

FILES = ("inventory.json", "manifest.json", "rank-00000.safetensors", "state.json", "tensors.json")
BACK = ("--checkpoint.load_step", "4")
LAYOUTS = [Case(), Case(tp=2), Case(shard=2), Case(cp=2)]


def checkpoints(config: Path) -> Path:
    """Where its checkpoints are."""
    return config.parent / "run" / "checkpoint"


def damage(file: Path, how: str) -> None:
    """Make a file what a crash or a disk may make of it."""
    if how == "deleted":
        file.unlink()
        return
    data = bytearray(file.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_noticed_and_named(straight: Path, tmp_path: Path, name: str, how: str) -> None:
    """Any bit of any file: the middle one here."""
    folder = tmp_path / "step-8"
    shutil.copytree(checkpoints(straight) / "step-8", folder)
    read(folder)
    damage(folder / name, how)
    with pytest.raises(CheckpointError, match=name):
        read(folder)


def test_every_bit_of_a_manifest_counts(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints(straight) / "step-8", tmp_path / "step-8")
    manifest = tmp_path / "step-8" / "manifest.json"
    whole = manifest.read_bytes()
    for place in range(len(whole)):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        assert (why_incomplete(tmp_path / "step-8") or "").startswith(("manifest.json is", "of format")), place


def test_a_flipped_bit_falls_back_to_the_checkpoint_before_unless_the_step_was_named(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = column(metrics(finished), "loss")
    newest = checkpoints(finished) / "step-8"
    damage(newest / "rank-00000.safetensors", "flipped")
    message = refusal(capsys, finished, "--checkpoint.load_step", "8")
    assert "rank-00000.safetensors is damaged" in message
    train_here(finished)
    output = capsys.readouterr().out
    assert f"passed over {newest}: rank-00000.safetensors is damaged: its xxh3_128 is" in output
    assert "resumed from" in output
    assert column(metrics(finished), "loss") == before


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "tensors.json", "state.json", "manifest.json", ".metadata"])
def test_a_pickle_in_a_checkpoint_is_refused_and_not_executed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """With checksums that fit, as an attacker can make them."""
    newest, sign = checkpoints(finished) / "step-8", tmp_path / "executed"
    shutil.rmtree(checkpoints(finished) / "step-4")
    bomb = pickle.dumps(Bomb(sign))
    if name == ".metadata":  # as torch's own checkpoints have it
        for file in (name, "__0_0.distcp"):
            (newest / file).write_bytes(bomb)
        (newest / "manifest.json").unlink()
        assert "it was interrupted" in refusal(capsys, finished)
    else:
        if name == "manifest.json":
            (newest / name).write_bytes(bomb)
        else:
            forge(newest, name, bomb + bytes((newest / name).stat().st_size))
        assert str(newest) in refusal(capsys, finished)
    assert not sign.exists()
    pickle.loads(bomb)  # it does go off where a pickle is read
    assert sign.exists()


def test_another_tokenizer_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = checkpoints(finished) / "step-8"
    state = json.loads((newest / "state.json").read_text())
    state["contract"]["tokenizer"] = "another"
    forge(newest, "state.json", json.dumps(state).encode())
    message = refusal(capsys, finished)
    assert "checkpoint: the ids are of a tokenizer with fingerprint another, that of [tokenizer] is byte" in message


def go_on(config_path: str, run: str, *overrides: str) -> Trainer:
    """Run a job in processes that have joined."""
    folder = Path(config_path).parent / run
    config, _ = load_config(["--config", config_path, "--job.dump_folder", str(folder), *overrides])
    trainer = Trainer(config, join(config), StopRequest())
    trainer.prompt = []  # no sample at the end
    trainer.train()
    trainer.close()
    return trainer


def resume(config_path: str, cases: list[Case]) -> None:
    """Go on from the copied checkpoint in each layout, and write it again as that layout does, before any step."""
    here = Path(config_path).parent
    for case in cases:
        go_on(config_path, f"on-{case.name}", *BACK, *case.overrides)
        again = ("--checkpoint.initial_load_path", str(here / "saved" / "checkpoint" / "step-4"))
        more = ("--checkpoint.initial_load_model_only", "false", "--training.steps", "4")
        go_on(config_path, f"again-{case.name}", *again, *more, *case.overrides)


def save_on_four(config_path: str) -> None:
    """All steps on 2 x 2 ranks; what is saved last is what is in memory."""
    trainer = go_on(config_path, "saved", *Case(shard=2, tp=2).overrides)
    saved = WholeTensors(Path(config_path).parent / "saved" / "checkpoint" / "step-8")
    for name, parameter in trainer.model.state_dict().items():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert torch.equal(whole, saved.read(name)), name


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job saved by 2 x 2 ranks after 4 of 8 steps, and resumed there in other layouts."""
    config = write_job(tmp_path_factory.mktemp("moved"), steps=8)
    text = config.read_text().replace("[data]\n", "qk_norm = true\n[data]\n", 1)
    config.write_text(text)
    train_here(config, "--job.dump_folder", str(config.parent / "undisturbed"), "--checkpoint.enable", "false")
    run_on_ranks(save_on_four, 4, str(config))
    for case in LAYOUTS:
        shutil.copytree(config.parent / "saved", config.parent / f"on-{case.name}")
    for processes in (1, 2):
        run_on_ranks(resume, processes, str(config), [case for case in LAYOUTS if case.processes == processes])
    return config


@pytest.mark.parametrize("layout", LAYOUTS, ids=[case.name for case in LAYOUTS])
def test_a_checkpoint_of_four_ranks_goes_on_in_any_layout(moved: Path, layout: Case) -> None:
    one, other = metrics(moved, "undisturbed"), metrics(moved, f"on-{layout.name}")
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert column(other, "loss") == pytest.approx(column(one, "loss"), abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=[case.name for case in LAYOUTS])
def test_what_another_layout_saves_of_it_is_the_same_bit_for_bit(moved: Path, layout: Case) -> None:
    saved, again = (WholeTensors(moved.parent / run / "checkpoint" / "step-4") for run in ("saved", f"again-{layout.name}"))
    assert sorted(saved.names()) == sorted(again.names())
    assert all(torch.equal(saved.read(name), again.read(name)) for name in saved.names())


def test_its_files_are_ordinary_safetensors(moved: Path) -> None:
    folder = moved.parent / "saved" / "checkpoint" / "step-4"
    pieces = [load_file(file) for file in sorted(folder.glob("rank-*.safetensors"))]
    assert len(pieces) == 4
    name = "model.layers.0.feed_forward.w1.weight"
    shards = {key: tensor for by_rank in pieces for key, tensor in by_rank.items() if key.startswith(name)}
    assert len(shards) == 4
    places = {tuple(map(int, key.split("@")[1].split(","))): tensor for key, tensor in shards.items()}
    whole = WholeTensors(folder).read("layers.0.feed_forward.w1.weight")
    for (row, column_), tensor in places.items():
        assert torch.equal(whole[row : row + tensor.shape[0], column_ : column_ + tensor.shape[1]], tensor)


def test_saving_beside_training_writes_the_same_bytes_as_waiting(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "waiting"
    train_here(straight, "--job.dump_folder", str(folder), "--checkpoint.async_mode", "disabled")
    for step in ("step-4", "step-8"):
        for name in ("rank-00000.safetensors", "tensors.json"):
            assert (folder / "checkpoint" / step / name).read_bytes() == (checkpoints(straight) / step / name).read_bytes()


class Disk:
    """Stands in for a folder's way to write: slow, or failing some of the time, and watching who writes when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0, error: OSError | None = None) -> None:
        self.seconds, self.error, self.write = seconds, error, Folder.write
        self.writing, self.most, self.lock = 0, 0, threading.Lock()
        monkeypatch.setattr(Folder, "write", lambda *args: self(*args))

    def __call__(self, folder: Folder, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        if name.endswith(".safetensors"):
            if self.error:
                self.write(folder, name, [b"half"])
                raise self.error
            with self.lock:
                self.writing += 1
                self.most = max(self.most, self.writing)
            time.sleep(self.seconds)
            with self.lock:
                self.writing -= 1
        return self.write(folder, name, pieces)


def test_a_save_slower_than_the_interval_is_waited_for_with_one_copy_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(monkeypatch, seconds=1.5)
    memory: set[tuple[int, ...]] = set()
    begin = Saver.begin

    def watch(saver: Saver, *args: Any) -> None:
        begin(saver, *args)
        assert saver.file.staging
        memory.add(tuple(slab.data_ptr() for slab in saver.file.staging.slabs))

    monkeypatch.setattr(Saver, "begin", watch)
    config = write_job(tmp_path, steps=4)
    train_here(config, "--checkpoint.interval", "1", "--checkpoint.keep_latest_k", "0")
    output = capsys.readouterr().out
    assert "a save takes longer than checkpoint.interval steps" in output
    assert disk.most == 1
    assert len(memory) == 1
    assert all(memory)
    assert all(why_incomplete(checkpoints(config) / f"step-{step}") is None for step in (1, 2, 3, 4))


@pytest.mark.parametrize("mode", ["async", "disabled"])
def test_a_full_disk_costs_the_checkpoint_not_the_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    before = why_incomplete(checkpoints(finished) / "step-8")
    more = ("--training.steps", "17", "--checkpoint.async_mode", mode, "--checkpoint.interval", "2")
    message = "[Errno 28] No space left on device"
    with monkeypatch.context() as patch:
        disk = Disk(patch, error=OSError(errno.ENOSPC, "No space left on device"))
        error = refusal_after_start(capsys, finished, *more)
        assert "step-14: not saved:" in error
        assert f"rank 0: {message}" in error
        assert "checkpoint.max_failures = 3 in a row" in error
        disk.error = None
    assert before is why_incomplete(checkpoints(finished) / "step-8") is None
    assert {path.name for path in checkpoints(finished).iterdir()} == {"step-4", "step-8"}
    assert len(metrics(finished)) >= 14, "training went on"
    train_here(finished, *more)
    assert "resumed from" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["async", "disabled"])
def test_a_full_disk_is_given_the_checkpoints_that_are_not_to_be_kept_any_more(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """It has room for two. They were kept, and now one is to be: that one must not be lost for the next."""
    write = Folder.write

    def full(folder: Folder, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        if name.endswith(".safetensors") and len(list(checkpoints(finished).glob("step-*/manifest.json"))) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, name, pieces)

    monkeypatch.setattr(Folder, "write", full)
    more = ("--training.steps", "9", "--checkpoint.async_mode", mode, "--checkpoint.keep_latest_k", "1")
    assert len(list(checkpoints(finished).glob("step-*/manifest.json"))) == 2
    train_here(finished, *more)
    output = capsys.readouterr().out
    assert "the disk is full: removed step-4, beyond keep_latest_k = 1" in output
    assert "not saved" not in output
    assert {path.name for path in checkpoints(finished).iterdir()} == {"step-9"}
    assert why_incomplete(checkpoints(finished) / "step-9") is None


def refusal_after_start(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str) -> str:
    """Run a job that must end in a user's error after its first steps; returns all it said."""
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: train_here(config, *overrides))
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert "Traceback" not in captured.err
    assert "warning:" in captured.out
    return captured.out + captured.err


def test_the_last_save_must_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, error=OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(CheckpointError, match="step-2: not saved:") as caught:
        train_here(write_job(tmp_path, steps=2))
    message = str(caught.value)
    assert "Read-only file system" in message


def test_a_folder_that_vanishes_is_said_and_not_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_path = write_job(tmp_path, steps=8)
    config, _ = load_config(["--config", str(config_path), "--checkpoint.max_failures", "9"])
    trainer = Trainer(config, join(config), StopRequest())
    step_counts = trainer.step_counts

    def vanish(*args: Any) -> Any:
        if trainer.progress.step == 2:
            shutil.rmtree(checkpoints(config_path))
        if trainer.progress.step == 6:
            assert not checkpoints(config_path).exists()
            checkpoints(config_path).mkdir()
        return step_counts(*args)

    trainer.step_counts = vanish  # type: ignore[method-assign]
    trainer.train()
    trainer.close()
    assert "the folder of the checkpoints is gone; is its disk still mounted?" in capsys.readouterr().out
    assert [path.name for path in checkpoints(config_path).iterdir()] == ["step-8"]


def fail_on_rank_one(config_path: str) -> str:
    """What is said where the second rank's disk fails once; the run goes on."""
    config, _ = load_config(["--config", config_path])
    world = join(config)
    said: list[str] = []
    trainer = Trainer(config, world, StopRequest())
    trainer.saver.say = said.append
    write = Folder.write

    def broken(folder: Folder, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        if folder.name == "step-4" and name == "rank-00001.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return write(folder, name, pieces)

    Folder.write = broken  # type: ignore[method-assign]
    trainer.train()
    trainer.close()
    return "\n".join(said)


def test_a_run_whose_checkpoints_are_gone_does_not_start_afresh_by_itself(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(checkpoints(finished))
    message = refusal(capsys, finished)
    assert f"{checkpoints(finished)}: no checkpoint, though the run has saved" in message
    assert "step-8; is its disk mounted? --checkpoint.load_step 0 starts afresh" in message
    assert not checkpoints(finished).exists()
    train_here(finished, "--checkpoint.load_step", "0", "--training.steps", "2", "--checkpoint.interval", "1")
    train_here(finished, "--training.steps", "3")
    assert f"resumed from {checkpoints(finished) / 'step-2'}" in capsys.readouterr().out


def test_one_rank_with_a_bad_disk_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=8)
    for said in run_on_ranks(fail_on_rank_one, 2, str(config)):
        assert "step-4: not saved:\n  rank 1: [Errno 5] Input/output error" in said
    assert [path.name for path in checkpoints(config).iterdir()] == ["step-8"]


def test_no_memory_for_the_copy_costs_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = HostBuffer.copy

    def scarce(staging: HostBuffer, *args: Any) -> Any:
        if not hasattr(staging, "tried"):
            staging.tried = True  # type: ignore[attr-defined]
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return copy(staging, *args)

    monkeypatch.setattr(HostBuffer, "copy", scarce)
    config = write_job(tmp_path, steps=8)
    train_here(config)
    assert "step-4: not saved:\n  rank 0: RuntimeError(\"DefaultCPUAllocator: can't" in capsys.readouterr().out
    assert [path.name for path in checkpoints(config).iterdir()] == ["step-8"]


def test_every_nth_checkpoint_is_kept_beside_the_latest(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=9)
    train_here(config, "--checkpoint.interval", "1", "--checkpoint.keep_latest_k", "2", "--checkpoint.keep_every_n", "3")
    assert {path.name for path in checkpoints(config).iterdir()} == {"step-3", "step-6", "step-8", "step-9"}


def test_checkpoints_in_an_object_store_are_those_on_a_disk(straight: Path, tmp_path: Path) -> None:
    store = ("--checkpoint.folder", "memory://bucket/run")
    folder = ("--job.dump_folder", str(tmp_path / "run"))
    train_here(straight, *folder, *store)
    assert not (tmp_path / "run" / "checkpoint").exists()
    train_here(straight, *folder, *store, *BACK)
    assert column(metrics(tmp_path / "job.toml"), "loss") == column(metrics(straight), "loss")
    assert [path.name for _, path in step_folders("memory://bucket/run")] == ["step-4", "step-8"]
    found, _ = read_newest("memory://bucket/run")
    assert found.path.name == "step-8"
    name = "rank-00000.safetensors"
    assert found.path.read(name) == (checkpoints(straight) / "step-8" / name).read_bytes()


def test_an_unknown_store_is_refused(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Protocol not known: nowhere" in refusal(capsys, straight, "--checkpoint.folder", "nowhere://bucket")


def test_whole_tensors_written_one_by_one_are_a_checkpoint(straight: Path, tmp_path: Path) -> None:
    source = WholeTensors(checkpoints(straight) / "step-8")
    state = read(checkpoints(straight) / "step-8").state
    write_whole(tmp_path / "step-8", {name: source.spec(name) for name in source.names()}, source.read, state)
    copy = WholeTensors(tmp_path / "step-8")
    assert read(tmp_path / "step-8").state == state
    assert all(torch.equal(source.read(name), copy.read(name)) for name in source.names())


def test_a_store_that_fails_to_delete_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove = Folder.remove

    def refuse(folder: Folder) -> None:
        if folder.exists():
            raise RuntimeError("SlowDown: reduce your request rate")
        remove(folder)

    monkeypatch.setattr(Folder, "remove", refuse)
    config = write_job(tmp_path, steps=8)
    train_here(config, "--checkpoint.keep_latest_k", "1")
    assert "removing old ones or noting it failed: RuntimeError: SlowDown" in capsys.readouterr().out
    assert why_incomplete(checkpoints(config) / "step-8") is None


def commit_during_validation(config_path: str) -> bool:
    """Whether a checkpoint that is slow to write counts before the validation that follows is over."""
    config, _ = load_config(["--config", config_path, "--checkpoint.interval", "2", "--validation.freq", "2"])
    trainer = Trainer(config, join(config), StopRequest())
    (validation,) = trainer.evaluations
    write, run = Folder.write, validation.run
    done = threading.Event()

    def slow(folder: Folder, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        done.wait(60)
        return write(folder, name, pieces)

    counted = []

    def validate(*args: Any) -> Any:
        done.set()
        saving = trainer.saver.running
        while saving and not saving.task.done():
            time.sleep(0.01)
        record = run(*args)
        counted.append(bool(saving and saving.size))
        return record

    Folder.write = slow  # type: ignore[method-assign]
    validation.run = validate  # type: ignore[method-assign]
    trainer.train()
    trainer.close()
    return counted[1]  # the first is of step 1


def test_a_validation_does_not_hold_up_a_checkpoint(tmp_path: Path) -> None:
    source = f'[[validation.sources]]\nname = "held_out"\nformat = "jsonl"\npaths = ["{tmp_path}/corpus/0.jsonl"]\n'
    config = write_job(tmp_path, steps=2, more=f"[validation]\nenable = true\n{source}")
    assert run_on_ranks(commit_during_validation, 2, str(config)) == [True, True]


def bad_rank_at_load(config_path: str, step: str) -> str:
    """What a rank says whose disk does not give it the index; the others are fine."""
    config, _ = load_config(["--config", config_path, "--checkpoint.load_step", step])
    world = join(config)
    read = Folder.read

    def stale(folder: Folder, name: str) -> bytes:
        if world.rank == 1 and name == "tensors.json":
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(folder, name)

    Folder.read = stale  # type: ignore[method-assign]
    with pytest.raises(CheckpointError) as caught:
        Trainer(config, world, StopRequest())
    return str(caught.value)


def test_a_rank_that_cannot_read_the_checkpoint_ends_all_of_them(finished: Path) -> None:
    for message in run_on_ranks(bad_rank_at_load, 2, str(finished), "4"):
        assert "tensors.json: not readable: [Errno 116] Stale file handle" in message


def test_a_fork_into_a_used_folder_sets_its_history_aside(finished: Path, straight: Path) -> None:
    origin = str(checkpoints(straight) / "step-4")
    fork = ("--checkpoint.initial_load_path", origin, "--checkpoint.initial_load_model_only", "false")
    train_here(finished, "--checkpoint.load_step", "0", *fork, "--training.steps", "6")
    assert {path.name for path in checkpoints(finished).iterdir()} == {"step-4.aside", "step-8.aside", "step-6"}
    assert sorted(column(metrics(finished), "step")) == [5, 6]


def test_a_restart_by_the_launcher_goes_back_only_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = (*BACK, "--training.steps", "6", "--checkpoint.interval", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    train_here(finished, *again)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train_here(finished, *again)
    output = capsys.readouterr().out
    assert "checkpoint.load_step = 4 was heeded before this restart" in output
    assert f"resumed from {checkpoints(finished) / 'step-6'}" in output
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    train_here(finished, *again)
    assert f"resumed from {checkpoints(finished) / 'step-4'}" in capsys.readouterr().out


def test_a_full_disk_under_the_metrics_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path, steps=2)), "--checkpoint.enable", "false"])
    trainer = Trainer(config, join(config), StopRequest())
    lines = trainer.log.sinks["jsonl"]
    assert isinstance(lines, JsonLines)
    lines.files["metrics"] = Path("/dev/full")
    trainer.train()
    trainer.close()
    assert "warning: step 2 is not in" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["file://{}/x/", "{}/x/", "memory://b/x[1]/"])
def test_folders_by_any_name_are_one_folder(tmp_path: Path, path: str) -> None:
    """Patterns and trailing slashes are part of no name."""
    folder = Folder(path.format(tmp_path))
    other = Folder("memory://b/x1")
    for one in (folder, other):
        one.make(parents=True)
        one.write_atomically("file", "text")
    assert folder.size("file") == 4
    assert folder.is_local == (not path.startswith("memory"))
    moved = folder.set_aside("file")
    assert moved.name == "file.aside"
    assert folder.names() == ["file.aside"]
    folder.remove()
    assert not folder.names()
    assert other.names() == ["file"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--checkpoint.enable", "false", "--checkpoint.load_step", "7"), "checkpoint.load_step = 7: nothing is loaded"),
        (("--checkpoint.initial_load_model_only", "false"), "there is no checkpoint.initial_load_path"),
        (("--checkpoint.keep_every_n", "9"), "checkpoint.keep_every_n = 9: must be a multiple of checkpoint.interval = 4"),
    ],
)
def test_settings_without_effect_are_refused(
    straight: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], message: str
) -> None:
    assert message in refusal(capsys, straight, *overrides)


def test_a_run_in_bfloat16_with_tied_embeddings_is_exported_and_resumed(tmp_path: Path) -> None:
    """Its file begins with float32 moments; the table is in it once."""
    more = ("--training.dtype", "bfloat16", "--model.tie_embeddings", "true", "--checkpoint.last_save_in_hf", "true")
    config = write_job(tmp_path, steps=4)
    more = (*more, "--checkpoint.interval", "2")
    train_here(config, *more)
    saved = WholeTensors(checkpoints(config) / "step-4")
    exported = load_file(tmp_path / "run" / "huggingface" / "step-4" / "model.safetensors")
    assert torch.equal(saved.read("tok_embeddings.weight"), exported["model.embed_tokens.weight"])
    assert "output.weight" not in saved.names()
    before = column(metrics(config), "loss")
    train_here(config, *more, "--checkpoint.load_step", "2")
    assert column(metrics(config), "loss") == before

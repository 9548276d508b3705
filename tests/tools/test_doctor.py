"""`cistron doctor`: what is fine is said to be, and planted faults are found."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from cistron.models.attention import FlashFacts, masks
from cistron.models.config import AttentionConfig
from cistron.tests.helpers.jobs import write_job
from cistron.tests.helpers.ranks import Command, run_on_ranks
from cistron.tools import cli
from cistron.tools.doctor import attention, collectives, command, disk, launch, numerics, rates, versions
from cistron.tools.doctor.examination import Examination
from cistron.tools.doctor.report import Line, Verdict, merged
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.processes import Layout, World, join

JOB = JobConfig.model_validate({})


def job_in(folder: Path) -> JobConfig:
    """Return a job that writes into a folder."""
    return JOB.model_copy(update={"job": JOB.job.model_copy(update={"dump_folder": str(folder)})})


@contextmanager
def folders_made(tmp_path: Path) -> Iterator[JobConfig]:
    """Yield the job of the doctor's folder, two of whose parents are not there."""
    with launch.own_folder(job_in(tmp_path / "outputs" / "run"), ".doctor-1") as job:
        yield job


def here(tmp_path: Path, part: str = "part", job: JobConfig | None = None) -> Examination:
    """Return an examination on this process alone, which is enough for parts that talk to no other."""
    job = job or job_in(tmp_path / "run")
    layout = Layout(replicate=1, shard=1, cp=1, tp=1)
    return Examination(part, World(rank=0, layout=layout, device=torch.device("cpu"), mesh=None), job)  # type: ignore[arg-type]


def verdicts(lines: list[Line]) -> dict[str, Verdict]:
    """Return the verdict of every line by its name."""
    return {line.name: line.verdict for line in lines}


def sample() -> list[tuple[str, list[attention.Case]]]:
    """Return cases of every executor, one with a window and one with a map: of the part's, those that take no time."""
    lengths, seq_len = attention.rows(on_gpu=False)[0]
    plain, dtype = AttentionConfig(), torch.float32
    return [
        *(
            (f"{executor} {causal}", [attention.Case(executor, lengths, seq_len, 64, causal, plain, dtype)])
            for executor in ("sdpa", "flex", "varlen")
            for causal in (True, False)
        ),
        *(
            (f"{executor} {window.named}", [attention.Case(executor, lengths, seq_len, 64, True, window, dtype)])
            for executor in ("sdpa", "flex")
            for window in attention.WINDOWS
        ),
    ]  # type: ignore[list-item]


def test_every_executor_agrees_with_attention_written_out(tmp_path: Path) -> None:
    e = here(tmp_path)
    for name, cases in sample():
        attention.compare(e, name, cases)
    assert {line.name: line.compared_with for line in e.lines if line.verdict != "ok"} == {}
    assert len(e.lines) == 14


def test_the_part_has_every_width_and_compiles(tmp_path: Path) -> None:
    names = [name for name, _ in attention.kinds(here(tmp_path))]
    for executor in ("sdpa", "flex", "varlen"):
        for width in (64, 128):
            assert f"{executor} float32, head_dim {width}, causal" in names
    assert "sdpa float32, head_dim 64, compiled" in names


def on_blackwell(e: Examination, monkeypatch: pytest.MonkeyPatch) -> Examination:
    """Pretend that the examination is of a Blackwell GPU with FlashAttention 4."""
    for part in (attention, versions):
        monkeypatch.setattr(part, "flash_facts", lambda device, **job: FlashFacts((10, 0), True, **job))
    e.world = World(rank=0, layout=e.world.layout, device=torch.device("cuda", 0), mesh=e.world.mesh)
    return e


def test_flex_is_compared_by_flash_attention_4_too_where_it_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = here(tmp_path)
    assert list(attention.flash_kinds(e)) == []
    assert verdicts(e.lines) == {"flex by FlashAttention 4": "not here"}
    kinds = dict(attention.flash_kinds(on_blackwell(here(tmp_path), monkeypatch)))
    for what in ("head_dim 64, causal", "head_dim 64, full", "head_dim 128, causal", "head_dim 128, full", "sliding", "lambda"):
        assert f"flex by FlashAttention 4, {what}" in kinds
    for width in (64, 128):
        assert [case.compiled for case in kinds[f"flex by FlashAttention 4, head_dim {width}, compiled"]] == [True]
    assert all(case.flash and case.dtype == torch.bfloat16 for cases in kinds.values() for case in cases)
    monkeypatch.setattr(attention, "flash_facts", lambda device, **job: FlashFacts((10, 0), False, **job))
    without = here(tmp_path)
    without.world = World(rank=0, layout=e.world.layout, device=torch.device("cuda", 0), mesh=e.world.mesh)
    assert list(attention.flash_kinds(without)) == []
    assert without.lines[0].compared_with == "the package flash-attn-4 is not installed"


def test_a_case_for_flash_attention_4_has_its_mask_and_a_wrong_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, seq_len = attention.rows(on_gpu=False)[0]
    case = attention.Case("flex", lengths, seq_len, 64, True, AttentionConfig(), torch.bfloat16, flash=True)
    built, right = [], masks.document_block_mask
    monkeypatch.setattr(masks, "document_block_mask", lambda *args: built.append(right(*args)) or built[-1])
    e = here(tmp_path)
    attention.compare(e, "right", [case])
    assert [mask.BLOCK_SIZE for mask in built] == [(256, 128)]
    monkeypatch.setattr(masks, "document_block_mask", lambda ids, *rest: right(torch.zeros_like(ids), *rest))
    attention.compare(e, "wrong", [case])  # documents see each other
    assert verdicts(e.lines) == {"right": "ok", "wrong": "wrong"}


def test_on_a_gpu_the_kernels_of_flex_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (10, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a pretended GPU")
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 28, 9))
    e = on_blackwell(here(tmp_path), monkeypatch)
    versions.examine(e)
    (line,) = (line for line in e.lines if line.name == "flex by flash")
    assert line.verdict == "ok"
    assert "FlashAttention 4 is installed, and this is a Blackwell GPU" in line.compared_with


def test_a_wrong_rule_of_the_dense_mask_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = masks.document_dense_mask

    def one_too_many(ids: torch.Tensor, causal: bool, *rest: object) -> torch.Tensor:
        seen = right(ids, causal, *rest)  # type: ignore[arg-type]
        return seen | seen.roll(1, dims=-1)  # a query sees the token after it too

    monkeypatch.setattr(masks, "document_dense_mask", one_too_many)
    e = here(tmp_path)
    attention.compare(e, *sample()[0])
    assert e.lines[0].verdict == "wrong"
    assert (e.lines[0].value or 0) > 0.01


def test_a_wrong_rule_of_the_block_mask_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = masks.document_block_mask
    monkeypatch.setattr(masks, "document_block_mask", lambda ids, *rest, **more: right(torch.zeros_like(ids), *rest, **more))
    e = here(tmp_path)
    attention.compare(e, *sample()[2])  # documents see each other
    assert e.lines[0].verdict == "wrong"


def test_loss_head_and_packed_rows_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = here(tmp_path)
    numerics.examine(e)
    assert set(verdicts(e.lines).values()) == {"ok", "not here"}
    assert verdicts(e.lines)["packed equals separate, flex"] == "not here"
    monkeypatch.setattr(
        masks, "document_dense_mask", lambda ids, *_: torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    )
    assert numerics.packed_error(e.device, "sdpa") > 0.01


def test_versions_are_those_that_pyproject_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = here(tmp_path)
    versions.examine(e)
    assert f"torch {torch.__version__}" in [line.name for line in e.lines if line.verdict == "ok"]
    monkeypatch.setattr(versions, "version_of", lambda name: "2.10.0" if name == "torch" else None)
    old = here(tmp_path)
    versions.examine(old)
    assert verdicts(old.lines)["torch 2.10.0"] == "wrong"
    assert verdicts(old.lines)["numpy"] == "wrong"
    assert verdicts(old.lines)["torchao"] == "not here"


def test_rates_have_numbers_and_say_what_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "product_size", lambda e: 64)
    e = here(tmp_path)
    rates.examine(e)
    assert all(line.value for line in e.lines if line.verdict == "ok")
    slow = here(tmp_path)
    metrics = slow.config.metrics.model_copy(update={"peak_flops": 1e18})
    slow.config = slow.config.model_copy(update={"metrics": metrics})
    rates.examine(slow)
    assert verdicts(slow.lines)["matrix product"] == "slow"


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: write() then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_found_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    for size in (2**20, 2**22):  # the first part of the first write, and none of the second, fits
        with folders_made(tmp_path) as job, file_limit(size):
            full = here(tmp_path, job=job)
            disk.examine(full)
        assert verdicts(full.lines) == {"write": "wrong"}
        assert full.lines[0].compared_with
        assert list(tmp_path.iterdir()) == []


def test_a_disk_with_room_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LEAST", 0.0)
    with folders_made(tmp_path) as job:
        e = here(tmp_path, job=job)
        disk.examine(e)
        assert str(tmp_path / "outputs" / "run") in e.lines[0].compared_with
    assert verdicts(e.lines) == {"write": "ok", "read": "ok"}
    assert list(tmp_path.iterdir()) == []


def hang(e: Examination) -> None:
    """Say one thing, then never come back."""
    e.find("began", "ok")
    time.sleep(600)


def crash(e: Examination) -> None:
    """End as a kernel's fault would."""
    os.kill(os.getpid(), signal.SIGSEGV)


def raise_error(e: Examination) -> None:
    """Fail as Python does."""
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(
    ("examine", "said"), [(hang, "were over; it was in hang"), (crash, "SIGSEGV"), (raise_error, "no kernel image")]
)
def test_a_part_that_hangs_or_crashes_costs_itself_alone(examine: Callable[[Examination], None], said: str) -> None:
    began = time.monotonic()
    lines = launch.run_part("part", examine, JOB, limit=3.0)
    assert time.monotonic() - began < 20
    assert lines[-1].verdict == "wrong"
    assert said in lines[-1].compared_with
    assert [line.name for line in lines[:-1]] == (["began"] if examine is hang else [])


def scribble(e: Examination) -> None:
    """Write into the folder, then never come back."""
    folder = Path(e.config.job.dump_folder)
    folder.mkdir(parents=True)
    (folder / "half").touch()
    hang(e)


def test_a_part_that_is_killed_leaves_nothing_and_what_others_write_meanwhile_stays(tmp_path: Path) -> None:
    mine = tmp_path / "outputs" / "mine"
    with folders_made(tmp_path) as job:
        lines = launch.run_part("part", scribble, job, limit=3.0)
        assert (Path(job.job.dump_folder) / "half").exists()
        mine.touch()
    assert lines[-1].verdict == "wrong"
    assert sorted(tmp_path.rglob("*")) == [mine.parent, mine]


def collectives_with_a_slow_rank(seconds: float) -> list[Line]:
    """Run the part on this rank; rank 1 takes longer for a product."""
    world = join(JOB)

    def product(e: Examination) -> Callable[[], None]:
        return lambda: time.sleep(0.02 + seconds * (dist.get_rank() == 1))

    collectives.product = product  # type: ignore[assignment]
    e = Examination("collectives", world, JOB, host=f"host-{world.rank}")
    os.environ.pop("WORLD_SIZE", None)
    collectives.examine(e)
    return e.lines


def on_ranks(seconds: float) -> list[Line]:
    """Tell `join` how many ranks there are, then run the part."""
    os.environ["WORLD_SIZE"] = str(dist.get_world_size())
    return collectives_with_a_slow_rank(seconds)


def test_collectives_are_right_and_a_slow_rank_is_named() -> None:
    lines = run_on_ranks(on_ranks, 2, 0.1)
    for name in ("all-reduce", "all-gather", "reduce-scatter", "links between hosts"):
        found = next(line for line in lines[0] if line.name == name)
        assert found.verdict == "ok"
        assert (found.value or 0) > 0
    slow = [line for line in lines[0] if line.name == "rank 1 on host-1: slower than the others"]
    assert [(line.verdict, line.rank) for line in slow] == [("slow", 1)]
    assert "ranks alike" not in verdicts(lines[0])


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8])
def test_each_pair_meets_once(n: int) -> None:
    rounds = n - 1 + n % 2
    met = Counter()  # type: ignore[var-annotated]
    for turn in range(rounds):
        for rank in range(n):
            other = collectives.opponent(rank, turn, n)
            if other is not None:
                assert other != rank
                assert collectives.opponent(other, turn, n) == rank
                met[frozenset((rank, other))] += 1
    assert len(met) == n * (n - 1) // 2
    assert set(met.values()) == {2}


def test_of_several_ranks_the_worst_line_is_kept() -> None:
    def line(name: str, verdict: Verdict, rank: int) -> Line:
        return Line(part="p", name=name, verdict=verdict, rank=rank)

    ranks = [[line("a", "ok", 0), line("b", "slow", 0)], [line("a", "wrong", 1), line("b", "slow", 1), line("c", "ok", 1)]]
    assert [(found.name, found.rank) for found in merged(ranks)] == [("a", 1), ("b", 0), ("c", 1)]
    shared = [[line("a", "ok", 0), line("c", "ok", 0)], [line("b", "ok", 1)]]
    assert [found.name for found in merged(shared)] == ["a", "b", "c"]


def test_ranks_of_a_host_share_checks_of_a_cpu_and_each_gpu_has_all(tmp_path: Path) -> None:
    hosts = ["a", "b", "a"]
    for device, expected in (("cpu", [[0, 2, 4], [0, 1, 2, 3, 4], [1, 3]]), ("cuda", [[0, 1, 2, 3, 4]] * 3)):
        found = []
        for rank, host in enumerate(hosts):
            e = here(tmp_path)
            layout = Layout(replicate=1, shard=3, cp=1, tp=1)
            world = SimpleNamespace(rank=rank, layout=layout, device=torch.device(device), gather=lambda _: hosts)
            e.world, e.host = world, host  # type: ignore[assignment]
            found.append(e.share(range(5)))
        assert found == expected


def test_what_is_no_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        command.main(["--parts", "rate"])
    assert ending.value.code == 2
    assert "no part rate; there are: versions, attention" in capsys.readouterr().err


def test_the_default_is_a_job_that_the_device_holds() -> None:
    assert [command.default_config(gib) for gib in (0.0, 24.0, 140.0)] == ["debug", "debug", "llama3_1b"]


def under_slurm(argv: list[str]) -> None:
    """Run the doctor as a task of srun, after the task's number, the job's, and the folder of scontrol."""
    rank, job, folder, *words = argv
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.environ |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": job}
    os.environ |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "PATH": f"{folder}:{os.environ['PATH']}"}
    sys.argv = ["cistron", "doctor", *words]
    cli.main()


def test_the_whole_on_two_ranks_under_slurm(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 127.0.0.1\n")
    scontrol.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = write_job(tmp_path / "job")
    report = tmp_path / "report.json"
    argv = [str((port - 20000) % 10000), str(tmp_path), "--config", str(job), "--json", str(report)]
    argv += ["--parts", "versions,collectives,disk,training", "--part-seconds", "100"]
    ranks = [Command(under_slurm, [str(rank), *argv]) for rank in range(2)]
    try:
        outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL)
    found = json.loads(report.read_text())
    wrong = [line for line in found["lines"] if line["verdict"] == "wrong"]
    assert wrong == [], outputs
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    names = {line["name"] for line in found["lines"]}
    assert {"all-reduce", "write", "tokens", "data loader", "checkpoint's stall", "peak memory", "block mask"} <= names
    assert found["hosts"] == [socket.gethostname()] * 2
    assert found["device"] == "CPU"
    assert list(found["part_seconds"]) == ["versions", "collectives", "disk", "training"]
    assert "training" in outputs[0]
    assert outputs[1].strip() == "" or "─" not in outputs[1]
    config, _ = load_config([str(job)])
    assert not Path(config.job.dump_folder).exists()

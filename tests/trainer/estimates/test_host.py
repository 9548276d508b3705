"""The memory of a host: the parts of a process's, and what a machine has."""

from pathlib import Path
from typing import Any

import pytest
from cistron.tests.helpers.jobs import write_job
from cistron.trainer.config import load_config
from cistron.trainer.estimates import HOST, host_estimate
from cistron.trainer.processes import Layout, host_memory, memory, private_memory
from cistron.trainer.start import verify

GIB = 2**30


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    return ["--config", str(write_job(tmp_path))]


def parts(job: list[str], *overrides: str, device: str = "cuda", ranks: int = 8) -> dict[str, float]:
    config, _ = load_config([*job, *overrides])
    layout = Layout(replicate=1, shard=ranks, cp=1, tp=1)
    tokenizer, decoder = verify(config, layout)
    return host_estimate(config, decoder, tokenizer, layout, "varlen", device, GIB)


def test_the_copy_of_a_checkpoint_is_counted_as_it_is_taken(job: list[str]) -> None:
    large = ("--model.preset", "llama3_8b", *(f"--model.{key}={n}" for key, n in LLAMA3_8B.items()))
    found = parts(job, *large)
    assert list(found) == list(HOST)
    assert found["checkpoint"] == 11.25 * GIB, "an eighth of 89.7 GiB: 11 slabs and a quarter"
    assert found["model"] == 0, "it is on the GPU"
    assert parts(job, *large, "--checkpoint.async_mode", "disabled")["checkpoint"] == 0
    assert parts(job, *large, "--checkpoint.enable", "false")["checkpoint"] == 0


LLAMA3_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "head_dim": 128,
    "hidden_dim": 14336,
    "vocab_size": 128256,
}


def test_workers_are_programs_and_a_cpu_holds_the_model(job: list[str]) -> None:
    alone, workers = (parts(job, "--data.num_workers", n, device="cpu", ranks=1) for n in ("0", "2"))
    assert (alone["programs"], workers["programs"]) == (GIB, 3 * GIB)
    assert alone["model"] > 0
    assert alone["pinned"] == 0
    assert parts(job, ranks=1)["pinned"] == 3 * (2 * 2048 + 2 * 1024), "three batches of 4 x 64 tokens"


def test_a_control_group_limits_the_memory_of_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = host_memory()
    assert machine
    group = tmp_path / "slurm" / "job" / "step"
    group.mkdir(parents=True)
    (group / "limit").write_text("max\n")
    (tmp_path / "cgroup").write_text("0::/slurm/job/step\n")
    monkeypatch.setattr(memory, "LIMITS", {"": (str(tmp_path), "limit")})
    paths: Any = memory.Path
    monkeypatch.setattr(memory, "Path", lambda *p: tmp_path / "cgroup" if p == ("/proc/self/cgroup",) else paths(*p))
    assert (host_memory() or 0) >= machine
    (group.parent / "limit").write_text("123456789\n")
    assert host_memory() == 123456789


def test_memory_of_a_process_is_what_it_alone_has() -> None:
    before = private_memory()
    if before is None:
        pytest.skip("there is no /proc")
    taken = bytearray(b"x" * 2**26)
    after = private_memory()
    assert after
    assert 2**26 <= after - before < 2**27, len(taken)

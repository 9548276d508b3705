"""The same job on other processes takes the same steps: the same rows in the same order, the same losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._functorch.config
from cistron.tests.helpers.jobs import Case, brief_sample, column, graphs_alone, metrics, train_here, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer
from torch.distributed import distributed_c10d

STEPS = 6
FULL_AC = "--activation_checkpoint.mode full "
SELECTIVE_AC = "--activation_checkpoint.mode selective "
BUDGET = "--activation_checkpoint.mode memory_budget --activation_checkpoint.memory_budget 0.3 "
COMPILED = "--compile.enable true "
NEVER = "--parallelism.fsdp_reshard_after_forward never "
ALWAYS = "--parallelism.fsdp_reshard_after_forward always "
PADDED = "--data.layout padded "
WEIGHTED = (
    "--data.lowercase_weight 0.1 --data.exclude_degenerate true --data.uppercase true "
    "--data.long_documents window --data.window_overlap 24 "
)
SLIDING = "--model.attention.mask sliding --model.attention.window 9 "
LAMBDA = "--model.attention.mask lambda --model.attention.window 9 --model.attention.sinks 2 "
REROPE = "--model.attention.position_map rerope --model.attention.map_window 9 --model.rope.original_seq_len 32 "
SAVED = Case(cp=2, tp=2, more="--checkpoint.enable true --checkpoint.interval 3 ")

# A covering subset: every pair of degrees, either mask, recomputed or not, compiled or eager.
CASES = [
    Case(shard=2, more="--data.num_workers 2"),
    Case(shard=2, more=SELECTIVE_AC + COMPILED + NEVER),
    Case(replicate=2, kind="bidirectional", more=FULL_AC),
    Case(cp=2),
    Case(cp=2, kind="bidirectional", more=FULL_AC + COMPILED),
    Case(kind="bidirectional", tp=2, more=BUDGET + COMPILED),
    Case(replicate=2, shard=2, more=SELECTIVE_AC),
    Case(replicate=2, cp=2, kind="bidirectional", more=ALWAYS),
    Case(replicate=2, tp=2, more=ALWAYS),
    Case(shard=2, cp=2, more=FULL_AC + NEVER),
    Case(shard=2, tp=2, kind="bidirectional"),
    Case(cp=4),
    SAVED,
    Case(cp=2, tp=2, kind="bidirectional", more=SELECTIVE_AC),
]
PADDED_CASES = [Case(more=PADDED), Case(cp=2, more=PADDED)]
WEIGHTED_CASES = [Case(more=WEIGHTED), Case(cp=2, more=WEIGHTED), Case(shard=2, tp=2, more=WEIGHTED)]
REACHES = [Case(more=option) for option in (SLIDING, LAMBDA, REROPE)]
REACH_CASES = [
    Case(shard=2, more=SLIDING + SELECTIVE_AC),
    Case(shard=2, tp=2, more=LAMBDA),
    Case(tp=2, more=REROPE + FULL_AC + COMPILED),
]
COMPARED = CASES + PADDED_CASES[1:] + WEIGHTED_CASES[1:] + REACH_CASES


def run_cases(config_path: str, cases: list[Case]) -> None:
    """Run the job in each layout, one after another, in processes that have joined."""
    for case in cases:
        folder = Path(config_path).parent / case.name
        config, _ = load_config(["--config", config_path, "--job.dump_folder", str(folder), *case.overrides])
        trainer = Trainer(config, join(config), StopRequest())
        trainer.mask = replace(trainer.mask, causal=not case.kind)  # next tokens that may be looked up: easy, but a loss
        if case.processes != 2 or COMPILED in case.more:
            trainer.prompt = []  # no sample at the end: a tenth of the time
        with brief_sample(), graphs_alone():
            trainer.train()
        trainer.close()
        torch.compiler.reset()
        torch._functorch.config.activation_memory_budget = 1.0


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with QK-norm and tied embeddings, which tensor parallelism easily gets wrong; run in all layouts."""
    config = write_job(tmp_path_factory.mktemp("layouts"), steps=STEPS)
    text = config.read_text().replace("[data]\n", "qk_norm = true\ntie_embeddings = true\n[data]\n", 1)
    config.write_text(text.replace("interval = 4", "enable = false"))
    cases = [Case(), Case(kind="bidirectional"), *CASES, *PADDED_CASES, *WEIGHTED_CASES, *REACHES, *REACH_CASES]
    for processes in (1, 2, 4):
        run_on_ranks(run_cases, processes, str(config), [case for case in cases if case.processes == processes])
    return config


@pytest.mark.parametrize("case", COMPARED, ids=[case.name for case in COMPARED])
def test_a_layout_has_the_same_rows_and_the_same_loss_curve_as_one_process(job: Path, case: Case) -> None:
    options = next((options for options in (PADDED, WEIGHTED, SLIDING, LAMBDA, REROPE) if options in case.more), "")
    reference = Case(case.kind, more=options)
    one, other = metrics(job, reference.name), metrics(job, case.name)
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(other, one, strict=True))
    print(f"| {case.name} | {worst:.1e} |")  # the table: pytest -rP
    assert len(one) == STEPS
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert column(other, "tokens_seen") == column(one, "tokens_seen")
    assert column(other, "loss") == pytest.approx(column(one, "loss"), rel=1e-4)
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-3)
    assert one[-1]["loss"] < 0.7 * one[0]["loss"], "so many steps teach the model something"


def test_a_run_in_one_layout_goes_on_in_another(job: Path) -> None:
    folder = str(job.parent / SAVED.name)
    train_here(job, "--job.dump_folder", folder, "--checkpoint.enable", "true", "--checkpoint.load_step", "3")
    one, other = metrics(job, Case().name), metrics(job, SAVED.name)
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert column(other, "loss") == pytest.approx(column(one, "loss"), rel=1e-4)


def timeouts(config_path: str) -> set[float]:
    """Seconds that the process groups of a tensor-parallel job with Muon wait."""
    options = ["--config", config_path, "--comm.timeout_seconds", "77", "--parallelism.tensor_parallel_degree", "2"]
    config, _ = load_config([*options, "--optimizer.name", "Muon"])
    trainer = Trainer(config, join(config), StopRequest())
    groups = list(distributed_c10d._world.pg_map)
    trainer.close()
    assert len(groups) > 3
    return {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups}


def test_every_process_group_waits_as_long_as_the_configuration_says(tmp_path: Path) -> None:
    assert run_on_ranks(timeouts, 2, str(write_job(tmp_path))) == [{77.0}, {77.0}]

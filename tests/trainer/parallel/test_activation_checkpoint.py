"""Activation checkpointing changes what is kept between the passes and how often it is computed, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._functorch.config
from cistron.models.attention import DocumentMask
from cistron.tests.helpers.jobs import refusal, write_job
from cistron.tests.helpers.packed import EOS, PAD, QWEN, pack, random_decoder
from cistron.trainer.config import ActivationCheckpoint
from cistron.trainer.parallel.activation_checkpoint import apply_activation_checkpointing
from torch.utils._python_dispatch import TorchDispatchMode


class Run(NamedTuple):
    """Forward and backward through four blocks: losses, all gradients, calls by operator, elements kept in between."""

    losses: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    calls: Counter[str]
    kept: int


class Calls(TorchDispatchMode):
    """Counts operators; memory that is kept is counted by `alive`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = storage._weak_ref()
        return result

    def alive(self) -> int:
        """Bytes of what operators have returned and somebody still holds."""
        alive = [torch.UntypedStorage._new_with_weak_ptr(reference) for reference in self.storages.values()]
        return sum(storage.nbytes() for storage in alive if storage is not None)


def run(mode: str, option: Any = "op") -> Run:
    model, batch = random_decoder(QWEN.replace(n_layers=4)), pack()
    apply_activation_checkpointing(model, ActivationCheckpoint(mode=mode, selective_ac_option=option))
    inputs = batch.tokens, batch.positions, DocumentMask(EOS, PAD).build(batch.sequence_ids), batch.labels
    with Calls() as calls:
        losses = model(*inputs)
        kept = calls.alive()
        gradients = torch.autograd.grad(losses.sum(), tuple(model.parameters()))
    return Run(losses.detach(), gradients, calls.counts, kept)


@pytest.fixture(scope="module")
def none() -> Run:
    return run("none")


@pytest.mark.parametrize(("mode", "option"), [("full", "op"), ("selective", "op"), ("selective", 2), ("selective", 3)])
def test_losses_and_gradients_are_those_of_keeping_everything_bit_for_bit(none: Run, mode: str, option: Any) -> None:
    other = run(mode, option)
    assert torch.equal(other.losses, none.losses)
    assert all(torch.equal(a, b) for a, b in zip(other.gradients, none.gradients, strict=True))


def test_by_operator_less_is_kept_than_without_and_less_computed_again_than_in_full(none: Run) -> None:
    full, by_operator = run("full"), run("selective")
    assert full.kept < by_operator.kept < none.kept
    attention = next(name for name in none.calls if name.startswith("_scaled_dot_product") and not name.endswith("backward"))
    blocks = 4
    assert none.calls[attention] == by_operator.calls[attention] == blocks
    assert full.calls[attention] == 2 * blocks
    # of a block's seven products wq, wv and w1 are recomputed; in full wk, wo and w3 too. Nothing needs w2's output
    assert by_operator.calls["mm"] - none.calls["mm"] == 3 * blocks
    assert full.calls["mm"] - none.calls["mm"] == 6 * blocks


@pytest.mark.parametrize(("n", "recomputed"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_every_nth_block_is_computed_again_in_full(none: Run, n: int, recomputed: int) -> None:
    assert run("selective", n).calls["mm"] - none.calls["mm"] == 6 * recomputed


@pytest.fixture
def budget_restored() -> Iterator[None]:
    before = torch._functorch.config.activation_memory_budget
    yield
    torch._functorch.config.activation_memory_budget = before
    torch.compiler.reset()


def saved_bytes(budget: float) -> int:
    """What compiled blocks keep for the backward pass under a memory budget."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model, batch = random_decoder(QWEN.replace(n_layers=1)), pack()
    apply_activation_checkpointing(model, ActivationCheckpoint(mode="memory_budget", memory_budget=budget))
    for block in model.layers:
        block.compile(backend="aot_eager_decomp_partition", fullgraph=True)
    kept: dict[int, int] = {}

    def pack_saved(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_saved, lambda tensor: tensor):
        model(batch.tokens, batch.positions, DocumentMask(EOS, PAD).build(batch.sequence_ids))
    return sum(kept.values())


@pytest.mark.usefixtures("budget_restored")
def test_a_smaller_memory_budget_keeps_less() -> None:
    least, some, most = (saved_bytes(budget) for budget in (0.0, 0.5, 1.0))
    assert least < some < most


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mode", "memory_budget"), ['mode = "memory_budget"', "compile.enable = true"]),
        (("memory_budget", "0.3"), ["activation_checkpoint.memory_budget = 0.3", 'activation_checkpoint.mode is "none"']),
        (
            ("selective_ac_option", "2"),
            ["activation_checkpoint.selective_ac_option = 2", 'activation_checkpoint.mode is "none"'],
        ),
        (("selective_ac_option", "0"), ["activation_checkpoint.selective_ac_option"]),
        (("memory_budget", "1.5"), ["activation_checkpoint.memory_budget = 1.5", "less than or equal to 1"]),
    ],
)
def test_what_would_do_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, str], expected: list[str]
) -> None:
    message = refusal(capsys, write_job(tmp_path), f"--activation_checkpoint.{overrides[0]}", overrides[1])
    for part in expected:
        assert part in message

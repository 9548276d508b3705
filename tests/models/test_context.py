"""A row spread over ranks: logits and gradients of the whole one, even shares of the mask's work, masks that agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cistron.datasets.rows import best_fit
from cistron.models.attention import DocumentMask, document_block_mask
from cistron.models.attention.masks import document_dense_mask
from cistron.models.decoder import Decoder
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, Packed, mean_loss, pack, random_decoder
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.parallel import context_block_size, without_context_parallel
from cistron.trainer.parallel.context_parallel import apply_context_parallel, balance, mask_work, order_by_rank, spread_rows
from cistron.trainer.parallel.tensor_parallel import apply_tensor_parallel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from torch.testing import assert_close

CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
# Two kv heads, so that tensor parallelism may halve them, and a vocabulary that it divides.
CONFIG = LLAMA.replace(qk_norm=True, vocab_size=64)
LAYOUTS = {2: [(2, 1)], 4: [(4, 1), (2, 2)]}  # processes: (cp, tp)


def _ids(lengths: list[int], seq_len: int) -> list[int]:
    ids = [number for number, length in enumerate(lengths) for _ in range(length)][:seq_len]
    return ids + [-1] * (seq_len - len(ids))


def _targets(batch: Packed, causal: bool) -> Tensor:
    """Next tokens, or for a bidirectional model the tokens themselves."""
    return batch.labels if causal else torch.where(batch.text(), batch.tokens, -100)


def _step(model: Decoder, inputs: list[Tensor], mask: Any, targets: int) -> Tensor:
    tokens, positions, labels = inputs
    logits = model(tokens, positions, mask)
    mean_loss(logits, labels, targets).backward()
    return logits.detach()


def _whole(causal: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients on one process."""
    batch, model = pack(), random_decoder(CONFIG)
    labels = _targets(batch, causal)
    mask = DocumentMask(EOS, PAD, causal).build(batch.sequence_ids)
    logits = _step(model, [batch.tokens, batch.positions, labels], mask, int((labels >= 0).sum()))
    return logits, {name: parameter.grad for name, parameter in model.named_parameters()}


def spread(processes: int) -> list[tuple[str, Tensor, Tensor, dict[str, Tensor], Tensor]]:
    """Every layout of so many processes: its name, positions, logits, gradients, logits of whole rows."""
    done = []
    for cp, tp in LAYOUTS[processes]:
        mesh = init_device_mesh("cpu", (cp, tp), mesh_dim_names=("cp", "tp"))
        for causal in (True, False):
            # compiled: TP's asynchronous embedding has no gradient in a compiled block outside FSDP2 (torch 2.13)
            for way in ["plain", "checkpointed", *(["compiled"] if causal and tp == 1 else [])]:
                batch, model, rule = pack(), random_decoder(CONFIG), DocumentMask(EOS, PAD, causal)
                labels = _targets(batch, causal)
                if tp > 1:
                    apply_tensor_parallel(model, mesh["tp"])
                apply_context_parallel(model, mesh["cp"])
                for name, block in model.layers.named_children():
                    if way == "compiled":
                        block.compile(backend="aot_eager", fullgraph=True)
                    if way == "checkpointed":
                        model.layers.register_module(name, checkpoint_wrapper(block))
                planes = [batch.tokens, batch.positions, labels]
                own, queries, keys = spread_rows(planes, batch.sequence_ids, rule, mesh["cp"])
                mask = rule.build(batch.sequence_ids, None, queries, keys)
                logits = _step(model, own, mask, int((labels >= 0).sum()))
                if way == "compiled":  # other documents in the next rows: another mask, the same code
                    others = pack().sequence_ids.flip(0)
                    _, queries_, keys_ = spread_rows([], others, rule, mesh["cp"])
                    with torch.compiler.set_stance("fail_on_recompile"):
                        model(own[0], own[1], rule.build(others, None, queries_, keys_))
                gradients = {}
                for name, parameter in model.named_parameters():
                    gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
                    dist.all_reduce(gradient, group=mesh.get_group("cp"))
                    gradients[name.replace("_checkpoint_wrapped_module.", "")] = gradient
                with without_context_parallel(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                    alone = model(batch.tokens, batch.positions, rule.build(batch.sequence_ids))
                done.append((f"cp {cp}, tp {tp}, causal {causal}, {way}", queries, logits, gradients, alone))
    return done


@pytest.mark.parametrize("processes", LAYOUTS)
def test_rows_spread_over_ranks_have_the_logits_and_gradients_of_whole_ones(processes: int) -> None:
    references = {causal: _whole(causal) for causal in (True, False)}
    for rank in run_on_ranks(spread, processes, processes):
        for name, queries, logits, gradients, alone in rank:
            expected, expected_gradients = references["causal True" in name]
            own = expected.take_along_dim(queries[..., None], 1)
            assert_close(logits, own, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
            assert_close(alone, expected, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}, whole rows: {m}")
            assert gradients.keys() == expected_gradients.keys()
            for key, gradient in gradients.items():
                assert_close(
                    gradient,
                    expected_gradients[key],
                    rtol=1e-5,
                    atol=1e-5,
                    msg=lambda m, name=name, key=key: f"{name}, {key}: {m}",
                )


def test_the_rows_of_these_tests_have_documents_across_every_border_between_ranks() -> None:
    ids = pack().sequence_ids
    for degree in (2, 4):
        for causal in (True, False):
            block = context_block_size(64, degree, "sdpa")
            order = order_by_rank(ids, causal, degree, block)
            owner = torch.empty_like(order).scatter_(1, order, torch.arange(64).expand(4, -1) // (64 // degree))
            borders = owner[:, 1:] != owner[:, :-1]
            assert borders.sum() > 3 * len(ids)
            across = borders & (ids[:, 1:] == ids[:, :-1])
            assert across.any(1)[:3].all()
            pairs = {(int(a), int(b)) for a, b in zip(owner[:, :-1][across], owner[:, 1:][across], strict=True)}
            assert {rank for pair in pairs for rank in pair} == set(range(degree))


rows = st.lists(st.lists(st.one_of(st.integers(1, 3), st.integers(1, 64)), max_size=40), min_size=1, max_size=3).map(
    lambda rows: torch.tensor([_ids(row, 64) for row in rows], dtype=torch.int32)
)


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans(), st.sampled_from([1, 2, 8, 16]))
def test_work_is_the_number_of_pairs_in_the_dense_mask(ids: Tensor, causal: bool, block: int) -> None:
    pairs = document_dense_mask(ids, causal)[:, 0].sum(-1)
    assert torch.equal(mask_work(ids, causal, block), pairs.view(len(ids), -1, block).sum(-1))


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans(), st.sampled_from([2, 4, 8]), st.sampled_from([1, 4, 8]))
def test_every_position_has_one_rank_and_every_rank_whole_blocks(ids: Tensor, causal: bool, degree: int, block: int) -> None:
    order = order_by_rank(ids, causal, degree, block)
    assert torch.equal(order.sort(1).values, torch.arange(64).expand_as(order))
    blocks = order.view(len(ids), -1, block)
    assert (blocks[:, :, 0] % block == 0).all()
    assert (blocks.diff() == 1).all()
    shares = order.view(len(ids), degree, -1)
    assert (shares.diff() > 0).all(), "a rank's own positions ascend"


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans(), st.sampled_from([2, 4]), st.sampled_from([4, 16]), st.booleans(), st.sampled_from([1, 2, 3]))
def test_a_part_of_the_block_mask_is_what_create_block_mask_makes_of_global_positions(
    ids: Tensor, causal: bool, degree: int, block: int, keys_in_order: bool, merged: int
) -> None:
    order = order_by_rank(ids, causal, degree, block)
    keys = torch.arange(64).expand_as(order) if keys_in_order else order
    for queries in order.chunk(degree, 1):

        def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor, queries: Tensor = queries) -> Tensor:
            at, to = queries[b, q], keys[b, k]
            same = ids[b, at] == ids[b, to]
            return same & (at >= to) if causal else same

        shape = (len(ids), None, 64 // degree, 64)
        theirs = create_block_mask(rule, *shape, device="cpu", BLOCK_SIZE=(merged * block, block))
        ours = document_block_mask(ids, causal, block, queries, None if keys_in_order else keys, merged=merged)
        assert (ours.shape, ours.BLOCK_SIZE, ours.seq_lengths) == (theirs.shape, theirs.BLOCK_SIZE, theirs.seq_lengths)
        for side in ("kv", "full_kv", "q", "full_q"):
            for table in (f"{side}_num_blocks", f"{side}_indices"):
                assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
        shape = (len(ids), 1, 64 // degree, 64)
        assert torch.equal(create_mask(ours.mask_mod, *shape, "cpu"), create_mask(rule, *shape, "cpu"))


@CAUSAL
def test_the_dense_mask_of_a_part_is_those_rows_and_columns_of_the_whole(causal: bool) -> None:
    ids = pack().sequence_ids
    whole = document_dense_mask(ids, causal)
    order = order_by_rank(ids, causal, 4, 2)
    for queries in order.chunk(4, 1):
        rows = whole.take_along_dim(queries[:, None, :, None], 2)
        assert torch.equal(document_dense_mask(ids, causal, queries), rows)
        assert torch.equal(document_dense_mask(ids, causal, queries, order), rows.take_along_dim(order[:, None, None, :], 3))


@CAUSAL
def test_a_part_of_the_block_mask_is_built_without_reading_a_value_on_the_host(causal: bool) -> None:
    ids = torch.empty(2, 512, dtype=torch.int32, device="meta")
    queries, keys = (torch.empty(2, n, dtype=torch.int64, device="meta") for n in (256, 512))
    assert document_block_mask(ids, causal, queries=queries, keys=keys).kv_indices.shape == (2, 1, 2, 4)


def _heavy_tailed_rows(seq_len: int, rows: int) -> Tensor:
    """Best-fit rows of documents with Pareto lengths: from 100 tokens, tail 1.1, so that few exceed a row."""
    draw = np.random.default_rng(0)
    lengths = np.minimum(100 * (1 - draw.random(40 * rows * seq_len // 1000)) ** (-1 / 1.1), 1e6).astype(int)
    plan = best_fit(lengths.tolist(), seq_len)
    chosen = draw.permutation(len(plan))[:rows]
    return torch.tensor([_ids([length for _, _, length in plan[row]], seq_len) for row in chosen], dtype=torch.int32)


@CAUSAL
@pytest.mark.parametrize("seq_len", [8192, 32_768])
def test_on_heavy_tailed_rows_no_rank_has_more_than_1_15_times_the_mean_work(seq_len: int, causal: bool) -> None:
    ids = _heavy_tailed_rows(seq_len, 24)
    whole_row = (ids[:, 0] == ids[:, -1]).float().mean()
    assert 0 < whole_row < 0.9, "single documents and mixed rows"
    for degree in (2, 4, 8):
        order = order_by_rank(ids, causal, degree, 128)
        work = mask_work(ids, causal, 1).gather(1, order).view(len(ids), degree, -1).sum(-1).double()
        assert (work.amax(1) <= 1.15 * work.mean(1)).all(), (degree, (work.amax(1) / work.mean(1)).amax())


@settings(max_examples=200)
@given(st.sampled_from([1, 2, 4]), st.lists(st.integers(0, 1000), min_size=4, max_size=32))
def test_no_two_ranks_differ_by_more_than_the_most_expensive_block(degree: int, work: list[int]) -> None:
    work = work[: len(work) // 4 * 4]
    shares = balance(work, degree)
    assert sorted(block for share in shares for block in share) == list(range(len(work)))
    assert {len(share) for share in shares} == {len(work) // degree}
    loads = [sum(work[block] for block in share) for share in shares]
    assert max(loads) - min(loads) <= max(work)


def test_blocks_are_128_for_flex_and_as_many_as_ranks_need_for_sdpa() -> None:
    assert context_block_size(8192, 8, "flex") == context_block_size(8192, 8, "sdpa") == 128
    assert [context_block_size(seq_len, 2, "sdpa") for seq_len in (4096, 1024, 64, 60, 6)] == [128, 64, 4, 2, 1]

"""Initial values are a function of (seed, name, shape): not of processes, sharding or wrapping."""

from __future__ import annotations

import math

import pytest
import torch
from cistron.models.config import PRESETS, DecoderConfig, RopeConfig
from cistron.models.decoder import Decoder
from cistron.models.init import init_weights
from cistron.models.lora import LoraLinear
from cistron.models.parameters import Kind, parameters_with_kinds
from cistron.tests.helpers.ranks import run_on_ranks
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

# Sizes that do not divide evenly: 101 rows of vocabulary over 4 ranks, a norm of 18 elements.
UNEVEN = DecoderConfig(
    vocab_size=101,
    dim=18,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    hidden_dim=22,
    norm_eps=1e-5,
    qk_norm=True,
    tie_embeddings=False,
    rope=RopeConfig(),
)


def _initialised(config: DecoderConfig, seed: int = 0) -> Decoder:
    model = Decoder(config)
    init_weights(model, seed)
    return model


def _shard_and_initialise(shard: int, tensor_parallel: int) -> dict[str, Tensor]:
    """On one rank: FSDP2 over a (shard, tensor_parallel) mesh, from meta; returns the whole parameters."""
    mesh = init_device_mesh("cpu", (shard, tensor_parallel), mesh_dim_names=("dp", "tp"))
    with torch.device("meta"):
        model = Decoder(UNEVEN)
    plan = {"tok_embeddings": RowwiseParallel(), "output": ColwiseParallel()}
    for name in ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3"):
        plan[f"layers.*.{name}"] = ColwiseParallel()
    plan |= {"layers.*.attention.wo": RowwiseParallel(), "layers.*.feed_forward.w2": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    for block in model.layers:
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    model.to_empty(device="cpu")
    init_weights(model, seed=0)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return {name: p.full_tensor() for name, p in model.named_parameters()}


def _initialise_layouts() -> list[dict[str, Tensor]]:
    return [_shard_and_initialise(*layout) for layout in ((4, 1), (2, 2), (1, 4))]


def test_four_processes_hold_the_values_of_one_bit_for_bit_in_every_layout() -> None:
    alone = dict(_initialised(UNEVEN).named_parameters())
    for layouts in run_on_ranks(_initialise_layouts, 4):
        for parameters in layouts:
            assert parameters.keys() == alone.keys()
            assert all(torch.equal(parameters[name], alone[name]) for name in alone)


def test_wrapping_a_block_for_checkpointing_or_compilation_changes_no_value() -> None:
    plain, wrapped = _initialised(UNEVEN), Decoder(UNEVEN)
    wrapped.layers[0] = checkpoint_wrapper(wrapped.layers[0])
    wrapped.layers[1] = torch.compile(wrapped.layers[1])
    init_weights(wrapped, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True))


def test_every_parameter_of_a_model_from_meta_is_overwritten() -> None:
    with torch.device("meta"):
        model = Decoder(UNEVEN)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    init_weights(model, seed=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_an_unknown_parameter_is_an_error_not_left_to_chance() -> None:
    model = Decoder(UNEVEN)
    model.extra = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(AssertionError, match=r"extra\.weight"):
        init_weights(model, seed=0)


def test_a_new_bias_is_zeros_and_a_new_matrix_is_random() -> None:
    model = Decoder(UNEVEN)
    model.layers[0].attention.wq = torch.nn.Linear(UNEVEN.dim, 32, bias=True)
    init_weights(model, seed=0)
    assert not model.layers[0].attention.wq.bias.any()
    assert torch.equal(model.layers[0].attention.wq.weight, _initialised(UNEVEN).layers[0].attention.wq.weight)


RESIDUAL = ("attention.wo.weight", "feed_forward.w2.weight")


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_parameter_of_a_preset_is_of_the_kind_that_its_place_says(name: str) -> None:
    with torch.device("meta"):
        model = Decoder(PRESETS[name])
    named = {name: (parameter, kind) for name, parameter, kind in parameters_with_kinds(model)}
    assert list(named) == [name for name, _ in model.named_parameters()]
    for name, (parameter, kind) in named.items():
        tables = ("tok_embeddings.weight", "output.weight")
        within = Kind.RESIDUAL_MATRIX if name.endswith(RESIDUAL) else Kind.EMBEDDING if name in tables else Kind.MATRIX
        assert kind is (Kind.NORM if "norm" in name else within), name
        assert kind.decays == (parameter.ndim >= 2), name
        assert kind.multiplies == (parameter.ndim >= 2 and name.startswith("layers.")), name


def test_a_head_and_adapters_say_what_they_are() -> None:
    model = Decoder(UNEVEN.replace(head_outputs=3))
    model.layers[0].attention.wo = LoraLinear(model.layers[0].attention.wo, rank=2, alpha=4.0)
    kinds = {name: kind for name, _, kind in parameters_with_kinds(model)}
    assert kinds["score.weight"] is Kind.EMBEDDING
    assert kinds["layers.0.attention.wo.weight"] is Kind.RESIDUAL_MATRIX
    assert kinds["layers.0.attention.wo.lora_a"] is Kind.ADAPTER_A
    assert kinds["layers.0.attention.wo.lora_b"] is Kind.ADAPTER_B


def test_moments_follow_the_table() -> None:
    model = _initialised(PRESETS["debug"])
    matrix = 1 / math.sqrt(PRESETS["debug"].dim)
    residual = matrix / math.sqrt(2 * PRESETS["debug"].n_layers)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        expected = residual if name.endswith(("wo.weight", "w2.weight")) else matrix
        # Of n normal values, the mean deviates by std/sqrt(n) and the deviation by std/sqrt(2n); 5 sigma of each.
        n = parameter.numel()
        assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(n), name
        assert parameter.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n)), name


def test_seeds_and_names_draw_independent_values() -> None:
    first, second = _initialised(UNEVEN, seed=1), _initialised(UNEVEN, seed=2)
    blocks = first.layers
    assert not torch.equal(first.output.weight, second.output.weight)
    assert not torch.equal(first.output.weight, first.tok_embeddings.weight)
    assert not torch.equal(blocks[0].attention.wq.weight, blocks[1].attention.wq.weight)


def test_a_bfloat16_model_holds_the_rounded_float32_values() -> None:
    single, half = _initialised(UNEVEN), Decoder(UNEVEN).to(torch.bfloat16)
    init_weights(half, seed=0)
    assert torch.equal(half.layers[1].attention.wo.weight, single.layers[1].attention.wo.weight.bfloat16())

"""Tokens that are drawn with a cache: those without one, of text alone, and from each prompt and seed by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import torch.distributed as dist
from cistron.datasets.tokenizers import HFTokenizer, Tokenizer, TokenizerConfig, build_tokenizer
from cistron.models.attention import cache as cache_module
from cistron.models.attention import documents as documents_module
from cistron.models.config import PRESETS, AttentionConfig, DecoderConfig, RopeConfig
from cistron.models.decoder import Decoder
from cistron.models.huggingface import hf_names, to_hf
from cistron.tests.helpers.models import BYTE, CAUSAL, PROTEIN, ready
from cistron.tests.helpers.packed import CONFIGS, LLAMA, PAD, QWEN, random_decoder
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.errors import ConfigError
from cistron.trainer.inference import Decoding, Sampling, prompt_ids, sample, sample_tokens, samples, text_behind
from cistron.trainer.inference.sampling import draw_samples, draw_tokens
from cistron.trainer.parallel import without_context_parallel
from cistron.trainer.parallel.context_parallel import apply_context_parallel
from cistron.trainer.parallel.tensor_parallel import apply_tensor_parallel
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

DNA = build_tokenizer(TokenizerConfig(kind="dna"))
CPU = torch.device("cpu")
TRAINED = {"original_seq_len": 32}
SCALED = {"factor": 4.0, **TRAINED}
ROPES = {
    **{name: RopeConfig(scaling=name, **SCALED) for name in ("linear", "ntk", "ntk_mixed", "dynamic_ntk", "yarn", "llama3")},
    "ntk_by_parts": RopeConfig(scaling="ntk_by_parts", beta_fast=16.0, beta_slow=0.5, **SCALED),
    "longrope": RopeConfig(scaling="longrope", short_factor=[1.5] * 8, long_factor=[4.0] * 8, **SCALED),
}
ATTENTIONS = {
    "sliding": AttentionConfig(mask="sliding", window=7),
    "lambda": AttentionConfig(mask="lambda", window=9, sinks=3),
    "rerope": AttentionConfig(position_map="rerope", map_window=8),
    "leaky": AttentionConfig(position_map="leaky_rerope", map_window=8, leak=8.0),
    "self_extend": AttentionConfig(position_map="self_extend", map_window=8, group=4),
    "distance_cap": AttentionConfig(position_map="distance_cap", map_window=8, sinks=2, logn=True),
    "logn": AttentionConfig(logn=True),
}
SHAPES = {
    **CONFIGS,
    **{name: LLAMA.replace(rope=rope) for name, rope in ROPES.items()},
    **{name: QWEN.replace(rope=RopeConfig(**TRAINED), attention=attention) for name, attention in ATTENTIONS.items()},
}


def small(preset: DecoderConfig, tokenizer: Tokenizer) -> DecoderConfig:
    """A preset with its proportions of heads, norms, rotary embedding and tied table, and more ids than there are."""
    heads = min(preset.n_heads // preset.n_kv_heads, 4) * 2
    shape = {"dim": 32, "n_layers": 2, "n_heads": heads, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 48}
    return preset.replace(vocab_size=tokenizer.vocab_size + 7, **shape)


def whole_logits(model: Decoder, ids: Sequence[int]) -> Tensor:
    """Logits behind the last token of a document, from all of its tokens at once under a mask of this test's own."""
    place = torch.arange(len(ids))
    distance = place[:, None] - place
    attention, seen = model.config.attention, distance >= 0
    if attention.window is not None:
        seen &= (distance < attention.window) | (place < (attention.sinks if attention.mask == "lambda" else 0))
    mask: Any = seen[None, None]
    if attention.map_window is not None:
        near, far = distance < attention.map_window, distance >= attention.map_window
        if attention.position_map == "distance_cap":
            far &= place < attention.sinks
        mask = cache_module.Regions((seen & near)[None, None], (seen & far)[None, None])
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), place.int()[None], mask)[0, -1]
    return logits


def without_cache(model: Decoder, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """What `sample_tokens` returns, from a pass over the whole row for each token."""
    drawable = torch.tensor([*tokenizer.text_ids(), tokenizer.eos_id])
    generator, ids = torch.Generator().manual_seed(sampling.seed), list(prompt)
    while len(ids) < len(prompt) + sampling.max_new_tokens:
        logits = whole_logits(model, ids)[None, : tokenizer.vocab_size]
        token = int(draw_tokens(logits, drawable, sampling, [generator]))
        if token == tokenizer.eos_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("multiple_of", [1, 2])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_rows_that_grow_have_the_logits_of_whole_rows(config: DecoderConfig, multiple_of: int) -> None:
    model, draw = random_decoder(config), np.random.default_rng(0)
    ids = [draw.integers(2, config.vocab_size, length).tolist() for length in (3, 124, 1, 40)]
    decoding = Decoding.begin(model, ids, PAD, CPU, multiple_of)
    for step in range(9):  # the longest row leaves the first 128 keys behind
        for row, logits in zip(ids, decoding.logits, strict=True):
            assert_close(logits, whole_logits(model, row), rtol=1e-5, atol=1e-5)
        if step == 4:
            chosen = [1, 3, 1]
            ids, decoding = [[*ids[row]] for row in chosen], decoding.rows(chosen)
        new = draw.integers(2, config.vocab_size, len(ids)).tolist()
        for row, token in zip(ids, new, strict=True):
            row.append(token)
        decoding = decoding.append(new)
    assert decoding.lengths == list(map(len, ids))


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_tokens_of_every_preset_are_those_without_a_cache(name: str) -> None:
    tokenizer = PROTEIN if name.startswith("protein") else BYTE
    model = random_decoder(small(PRESETS[name], tokenizer))
    prompts = [tokenizer.encode(text).tolist() for text in (b"A", b"ACDEFGHIKLMNPQRSTVWY" * 2, b"MKV")]
    for sampling in (
        Sampling(max_new_tokens=12, temperature=0),
        Sampling(max_new_tokens=12, top_p=0.9, temperature=1.5, seed=5),
    ):
        found = [new.ids for new in draw_samples(model, tokenizer, prompts, sampling)]
        assert found == [without_cache(model, tokenizer, prompt, sampling) for prompt in prompts]
        assert any(len(ids) == 12 for ids in found)


@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen3"])
def test_the_most_likely_tokens_are_those_of_transformers(config: DecoderConfig) -> None:
    ours = random_decoder(config.replace(vocab_size=512), seed=3)
    stated = to_hf(ours.config, max_positions=99, eos_id=BYTE.eos_id, pad_id=BYTE.pad_id, dtype="float32")
    theirs = AutoModelForCausalLM.from_config(CONFIG_MAPPING[stated["model_type"]].from_dict(stated)).float().eval()
    theirs.load_state_dict({name: ours.state_dict()[key] for key, name in hf_names(ours.config).items()}, strict=True)
    others = [BYTE.pad_id, *range(256, 512)]
    for prompt in ([65], [*b"a longer prompt"], [200, 100]):
        new = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, suppress_tokens=others)[0].tolist()
        found = sample_tokens(ours, BYTE, prompt, max_new_tokens=40, temperature=0)
        assert new[len(prompt) :] == (found if len(found) == 40 else [*found, BYTE.eos_id])


@pytest.fixture(scope="module")
def gapped(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    """Words with gaps between their ids, some of them special."""
    words = {"<unk>": 0, "one": 1, "two": 2, "three": 9, "<end>": 5, "<pad>": 12, "<mask>": 13, "<more>": 4}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.add_special_tokens(["<end>", "<pad>", "<mask>", "<more>", "<unk>"])
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    library.save(str(path))
    return HFTokenizer(str(path), eos_token="<end>", pad_token="<pad>", mask_token="<mask>")


@pytest.mark.parametrize("kind", ["byte", "dna", "protein", "hf"])
def test_no_draw_is_anything_but_text_or_the_eos(kind: str, gapped: HFTokenizer) -> None:
    tokenizer = gapped if kind == "hf" else build_tokenizer(TokenizerConfig(kind=kind))
    text = {
        "byte": set(range(2, 256)),
        "dna": {i for i, token in enumerate(getattr(DNA, "tokens", ())) if len(token) == 1},
        "protein": {i for i, token in enumerate(getattr(PROTEIN, "tokens", ())) if len(token) == 1},
        "hf": {1, 2, 9},
    }[kind]
    assert set(tokenizer.text_ids()) == text
    model = random_decoder(CAUSAL.replace(vocab_size=tokenizer.vocab_size + 40))
    others = [i for i in range(model.config.vocab_size) if i not in text]
    with torch.no_grad():
        # pushed up in one half of all directions, and down in the other
        model.output.weight[others] *= 30
        model.output.weight[tokenizer.eos_id] = 0
        row = model(torch.tensor([[*text]]), torch.arange(len(text), dtype=torch.int32)[None], torch.ones(1, 1, 1, 1).bool())
    assert (row[0].argmax(1)[:, None] == torch.tensor(others)).any(1).float().mean() > 0.8, "they are likely"
    drawn: list[int] = []
    many = 450 if kind == "byte" else 60
    for temperature, count in ((0.0, 1), (1.0, 10), (50.0, many)):
        sampling = Sampling(max_new_tokens=25, temperature=temperature, top_k=10**5)
        for new in draw_samples(model, tokenizer, [[min(text)]], sampling, count=count):
            drawn += [*new.ids, *[tokenizer.eos_id] * new.ended]
    assert len(drawn) > (10_000 if kind == "byte" else 200)
    assert set(drawn) <= text | {tokenizer.eos_id}
    assert len(set(drawn)) == len(text) + 1, "all of these occur"


def test_a_token_costs_one_query_whatever_stands_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[int] = []

    def counting(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(q: Tensor, *args: Any, **options: Any) -> Tensor:
            queries.append(q.shape[0] * q.shape[2])
            return function(q, *args, **options)

        return call

    def of_group(q: Tensor, *args: Any) -> Tensor:
        queries.append(q.shape[0] * q.shape[2])
        return by_group(q, *args)

    by_group = cache_module._attend_by_group
    monkeypatch.setattr(cache_module, "_attend_by_group", of_group)
    monkeypatch.setattr("cistron.models.attention.kernels.attend_by_document", counting(documents_module.attend_by_document))
    model = random_decoder(CAUSAL)
    tokens: list[int] = []
    model.tok_embeddings.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].numel()))
    with torch.no_grad():
        model.output.weight[BYTE.eos_id] = 0  # at temperature 0 never the most likely
    for length in (5, 300):
        found = sample_tokens(model, BYTE, [65] * length, max_new_tokens=6, temperature=0)
        assert len(found) == 6
        assert tokens == [length, 1, 1, 1, 1, 1]
        assert queries == [length] * 2 + [1] * 10, "two layers"
        tokens.clear()
        queries.clear()
    list(draw_samples(model, BYTE, [[65] * 20], Sampling(max_new_tokens=3, temperature=0), count=4))
    assert tokens == [20, 4, 4], "samples share what the prompt costs"


def test_a_sample_depends_on_its_prompt_and_seed_alone() -> None:
    opened = ready(CAUSAL, BYTE)
    prompts = [prompt_ids(opened, text) for text in ("A", "pack my box with five dozen jugs", "ACGTACGTAC")]
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.2, "top_k": 40, "top_p": 0.95}
    with torch.no_grad():
        opened.model.output.weight[BYTE.eos_id] *= 2.5  # texts of many lengths
    expected = [
        (number, sample(opened, bytes(prompt), seed=11 + one, **options), 11 + one)
        for number, prompt in enumerate(prompts)
        for one in range(3)
    ]
    for batch_tokens in (1, 100, 10**6):
        found = list(samples(opened, prompts, Sampling(seed=11, **options), 3, batch_tokens))
        assert [(new.prompt, new.text, new.seed) for new in found] == expected
    assert 0 < sum(new.ended for new in found) < 9
    assert len({text for _, text, _ in expected}) == 9


def test_the_filters_leave_the_tokens_that_they_say() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.15, 0.05]]).log()
    logits[0, 2] = -50.0
    drawable = torch.tensor([0, 1, 3, 4, 5])

    def found(**options: Any) -> set[int]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(400)]
        return set(draw_tokens(logits.expand(400, -1), drawable, Sampling(**options), generators).tolist())

    plain = {"temperature": 1.0}
    assert found(**plain) == {0, 1, 3, 4, 5}
    assert found(top_k=3, **plain) == {1, 3, 4}
    assert found(top_p=0.6, **plain) == {1, 3}, "0.4 are not enough, 0.7 are"
    assert found(top_p=0.4, **plain) == {1}
    assert found(top_p=1e-9, **plain) == {1}
    assert found(top_k=2, top_p=0.56, **plain) == {1}, "4/7 of what top_k leaves"
    assert found(temperature=1e-30) == {1}
    assert found(temperature=0.0) == {1}
    assert found(temperature=100.0, top_p=0.5) == {1, 3, 4}, "tempered before"
    for wrong in ({"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"top_k": 0}, {"temperature": -1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = "):
            Sampling(**wrong)


def test_a_blank_that_opens_a_continuation_is_kept(tmp_path: Path) -> None:
    words = {"▁one": 0, "▁two": 1, "</s>": 2, "s": 3}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "▁one"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.decoder = tokenizers.decoders.Metaspace()
    library.add_special_tokens(["</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(str(tmp_path), eos_token="</s>")
    assert text_behind(tokenizer, [0], [1]) == " two"
    assert text_behind(tokenizer, [0], [3]) == "s"
    assert text_behind(BYTE, [0xC3], [0xA4]) == "\ufffd", "half of a letter stands before it"


def spread_samples(kind: str) -> list[list[int]]:
    """Samples of a model that two ranks share."""
    model = random_decoder(LLAMA.replace(qk_norm=True, vocab_size=512))
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=(kind,))
    if kind == "tp":
        apply_tensor_parallel(model, mesh)
    else:
        apply_context_parallel(model, mesh)
    assert dist.get_world_size() == 2
    multiple_of = 2 if kind == "tp" else 1
    with without_context_parallel(model):
        sampling = Sampling(max_new_tokens=9, temperature=1.0)
        return [new.ids for new in draw_samples(model, BYTE, [[65] * 3, [66] * 8], sampling, count=2, multiple_of=multiple_of)]


@pytest.mark.parametrize("kind", ["tp", "cp"])
def test_ranks_that_share_a_model_draw_what_one_draws(kind: str) -> None:
    model = random_decoder(LLAMA.replace(qk_norm=True, vocab_size=512))
    sampling = Sampling(max_new_tokens=9, temperature=1.0)
    alone = [new.ids for new in draw_samples(model, BYTE, [[65] * 3, [66] * 8], sampling, count=2)]
    assert run_on_ranks(spread_samples, 2, kind) == [alone, alone]

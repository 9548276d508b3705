"""Models from checkpoints and Hugging Face folders; scores and embeddings that depend on a sequence alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.datasets.readers import NamedSequence, SequenceFiles
from cistron.datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.models.config import AttentionConfig, DecoderConfig, RopeConfig
from cistron.models.errors import ModelError
from cistron.tests.helpers.jobs import forge, write_job
from cistron.tests.helpers.models import BYTE, CAUSAL, ENCODER, PROTEIN, random_sequences, ready, write_checkpoint, write_fasta
from cistron.trainer import checkpoints as checkpoint
from cistron.trainer.config import load_config
from cistron.trainer.errors import ConfigError, EosMismatchError
from cistron.trainer.huggingface import export, import_folder
from cistron.trainer.inference import (
    OpenedModel,
    choose_layers,
    log_likelihoods,
    meaning,
    open_model,
    read_documents,
    sample,
    sample_tokens,
    widths,
)
from cistron.trainer.inference.documents import encode_sequence, make_row, with_positions
from cistron.trainer.inference.embeddings import embed
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, EuroBertForMaskedLM

LAYERS = ["layers.*", "layers.1.feed_forward", "layers.0.attention", "norm"]


ROPE = CAUSAL.rope.replace(original_seq_len=32)
MAPPED = CAUSAL.replace(rope=ROPE, attention=AttentionConfig(position_map="self_extend", map_window=8, group=4, logn=True))


@pytest.fixture(
    scope="module", params=[(CAUSAL, BYTE), (MAPPED, BYTE), (ENCODER, PROTEIN)], ids=["causal", "mapped", "encoder"]
)
def opened(request: pytest.FixtureRequest) -> OpenedModel:
    return ready(*request.param)


def close(one: Any, other: Any) -> None:
    assert_close(one, other, rtol=1e-5, atol=1e-5)


def scores(opened: OpenedModel, sequences: list[str], **options: Any) -> list[tuple[int, float]]:
    documents = (encode_sequence(opened.tokenizer, NamedSequence("", text.encode())) for text in sequences)
    return [(one.tokens, one.log_likelihood) for _, one in log_likelihoods(opened, documents, **options)]


def test_a_model_is_asked_otherwise_says_so_and_is_had_back() -> None:
    opened = ready(CAUSAL, BYTE)
    text = encode_sequence(BYTE, NamedSequence("", random_sequences(0, [40])[0].encode())).ids

    def logits(model: OpenedModel) -> Tensor:
        row = make_row(model, [text, text[-12:]])
        with torch.no_grad():
            return model.model(row.tokens, row.positions, row.mask)[0]

    plain = logits(opened)
    other = with_positions(opened, ROPE, AttentionConfig(position_map="rerope", map_window=8), 64)
    assert other.messages == (
        "warning: model.attention is not that of its training: position_map = 'rerope' instead of 'none', map_window = 8 "
        "instead of None",
    )
    close(logits(other)[:9], plain[:9])
    assert not torch.allclose(logits(other)[9:40], plain[9:40], atol=1e-3)
    back = with_positions(opened, opened.trained.rope, opened.trained.attention, 0)
    assert back.messages == ()
    assert torch.equal(logits(back), plain)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 99), budget=st.integers(1, 400))
def test_nothing_depends_on_what_else_is_in_the_batch(opened: OpenedModel, lengths: list[int], seed: int, budget: int) -> None:
    sequences = random_sequences(seed, [1, *lengths, 150])
    alone = [embed(opened, [text], layer=LAYERS) for text in sequences]
    for batch_tokens in (budget, 10**6):
        together = embed(opened, sequences, layer=LAYERS, batch_tokens=batch_tokens)
        for name, rows in together.items():
            close(rows, torch.cat([one[name] for one in alone]))
    residues = embed(opened, sequences, layer="norm", pool="none", batch_tokens=budget)
    assert [len(rows) for rows in residues] == list(map(len, sequences))
    close(torch.stack([rows.mean(0) for rows in residues]), together["norm"])
    close(torch.stack([rows[-1] for rows in residues]), embed(opened, sequences, layer="norm", pool="last"))
    scored = scores(opened, sequences[:-1], batch_tokens=budget)
    for text, (tokens, log_likelihood) in zip(sequences, scored, strict=False):
        assert scores(opened, [text]) == [(tokens, pytest.approx(log_likelihood, abs=1e-5 * len(text)))]


def read(tokenizer: Tokenizer, text: str) -> list[int]:
    """The document of a text, letter by letter."""
    if tokenizer is BYTE:
        return [*text.encode(), 0]
    return [0, *({"A": 5, "C": 23, "G": 6, "T": 11, "N": 17}[letter] for letter in text), 2]  # as ESM published them


def forward(opened: OpenedModel, ids: list[int]) -> Tensor:
    """Log-probabilities float64 [tokens, vocab], with a dense mask of a document on its own."""
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool)[None, None]
    positions = torch.arange(len(ids), dtype=torch.int32)[None]
    with torch.no_grad():
        logits = opened.model(torch.tensor([ids]), positions, mask.tril() if opened.mask.causal else mask)
    return logits[0].log_softmax(-1)


@pytest.mark.parametrize("tokenizer", [BYTE, PROTEIN])
def test_a_log_likelihood_is_what_the_definition_says(tokenizer: Tokenizer) -> None:
    double = ready(CAUSAL, tokenizer, torch.float64)
    sequences = random_sequences(0, [1, 2, 30])
    for with_eos in (False, True):
        for text, (tokens, found) in zip(sequences, scores(double, sequences, with_eos=with_eos), strict=True):
            ids = read(tokenizer, text)
            end = len(ids) if with_eos else len(ids) - 1
            given = forward(double, ids)
            expected = sum((float(given[i - 1, ids[i]]) for i in range(1, end)), 0.0)
            assert (tokens, found) == (end - 1, pytest.approx(expected, abs=1e-12))


def test_a_pseudo_log_likelihood_hides_each_residue_in_turn() -> None:
    double = ready(ENCODER, PROTEIN, torch.float64)
    sequences = random_sequences(1, [1, 9, 25])
    for text, (tokens, found) in zip(sequences, scores(double, sequences, batch_tokens=100), strict=True):
        ids = read(PROTEIN, text)
        hidden = [[*ids[:i], 32, *ids[i + 1 :]] for i in range(1, len(ids) - 1)]
        expected = sum(float(forward(double, row)[i, ids[i]]) for i, row in enumerate(hidden, start=1))
        assert (tokens, found) == (len(text), pytest.approx(expected, abs=1e-12))


def test_what_has_no_likelihood_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a mask token, and byte tokenizer"):
        scores(ready(ENCODER, BYTE), ["A"])
    with pytest.raises(ConfigError, match="with_eos: a bidirectional model"):
        scores(ready(ENCODER, PROTEIN), ["A"], with_eos=True)
    with pytest.raises(ModelError, match="predicts no tokens, so it cannot score sequences"):
        scores(ready(CAUSAL.replace(head_outputs=2), BYTE), ["A"])
    with pytest.raises(ModelError, match="cannot generate"):
        ready(ENCODER, PROTEIN).refuse_encoder("generate")


@pytest.mark.parametrize("config", [CAUSAL, ENCODER], ids=["causal", "encoder"])
def test_embeddings_are_those_of_the_exported_model(tmp_path: Path, config: DecoderConfig) -> None:
    step = write_checkpoint(tmp_path / "checkpoint" / "step-3", config)
    folder = tmp_path / "hf"
    export(checkpoint.read(step), folder, tokenizer=TokenizerConfig(kind="byte"))
    theirs = (AutoModelForCausalLM if config.causal else EuroBertForMaskedLM).from_pretrained(folder).eval()
    seen: list[Tensor] = []
    theirs.model.layers[1].mlp.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    sequences = random_sequences(2, [1, 7, 100, 30])
    ours = embed(step.parent, sequences, layer=LAYERS, pool="none")
    read_straight = embed(folder, sequences, layer=LAYERS, pool="none")
    for number, text in enumerate(sequences):
        with torch.no_grad():
            output = theirs(torch.tensor([[*text.encode(), 0]]), output_hidden_states=True)
        for name, expected in (
            ("layers.0", output.hidden_states[1][0]),
            ("layers.1.feed_forward", seen[-1]),
            ("norm", output.hidden_states[-1][0]),
        ):
            close(ours[name][number], expected[:-1])
            assert torch.equal(ours[name][number], read_straight[name][number])


HALF = CAUSAL.head_dim // 2
BY_LENGTH = {
    "dynamic_ntk": RopeConfig(scaling="dynamic_ntk", factor=4.0, original_seq_len=16),
    "longrope": RopeConfig(
        scaling="longrope", factor=4.0, original_seq_len=16, short_factor=[1.5] * HALF, long_factor=[4.0] * HALF
    ),
}


@pytest.mark.parametrize("scaling", BY_LENGTH)
def test_angles_that_depend_on_a_length_are_those_of_transformers_up_to_the_trained_one(tmp_path: Path, scaling: str) -> None:
    step = write_checkpoint(tmp_path / "step-1", CAUSAL.replace(rope=BY_LENGTH[scaling]))
    folder = tmp_path / "hf"
    told = export(checkpoint.read(step), folder, tokenizer=TokenizerConfig(kind="byte"))
    assert "rotary angles there are those of the length of each text; training had those of 64 tokens for all" in told
    import_folder(folder, tmp_path / "imported")
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    short, (long,) = random_sequences(4, [1, 9, 15]), random_sequences(5, [40])

    def of_theirs(text: str) -> tuple[Tensor, float]:
        ids = [*text.encode(), 0]
        with torch.no_grad():
            output = theirs(torch.tensor([ids]), output_hidden_states=True)
        likely = output.logits[0].double().log_softmax(-1)
        return output.hidden_states[-1][0, :-1], sum(float(likely[i - 1, ids[i]]) for i in range(1, len(ids) - 1))

    expected = [of_theirs(text) for text in short]
    prompt = torch.tensor([[*short[1].encode()]])
    nothing = [BYTE.pad_id, *range(256, BYTE.vocab_size)]  # ids that are no byte
    new = theirs.generate(prompt, max_new_tokens=6, do_sample=False, suppress_tokens=nothing)[0, 9:].tolist()
    text = BYTE.decode([token for token in new if token != BYTE.eos_id])
    beyond = of_theirs(long)[0]
    for opened in (open_model(folder), open_model(tmp_path / "imported" / "step-0")):
        rows = embed(opened, [*short, long], layer="norm", pool="none")
        for ours, (hidden, _) in zip(rows, expected, strict=False):
            close(ours, hidden)
        for (_, ours), (_, likelihood) in zip(scores(opened, short), expected, strict=True):
            assert ours == pytest.approx(likelihood, abs=1e-4)
        assert BYTE.decode(sample_tokens(opened.model, BYTE, prompt[0].tolist(), max_new_tokens=6, temperature=0)) == text
        assert not torch.allclose(rows[-1], beyond, atol=1e-2)
        close(rows[-1][:15], embed(opened, [long[:15]], layer="norm", pool="none")[0])
        assert opened.seq_len == 16
        assert f'"{scaling}": texts of every length have the rotary angles of 16 tokens here' in opened.messages[-1]
    (trained,) = open_model(step).messages
    assert "have the rotary angles of 64 tokens here" in trained


def test_a_checkpoint_that_names_a_kernel_where_there_is_a_table_now_is_opened(tmp_path: Path) -> None:
    step = write_checkpoint(tmp_path / "step-1", CAUSAL)
    state = json.loads((step / "state.json").read_text())
    state["config"]["model"]["attention"] = "varlen"
    del state["model"]["attention"]
    forge(step, "state.json", json.dumps(state).encode())
    state = checkpoint.read(step).state
    assert (state.config.model.attention.executor, state.model) == ("varlen", CAUSAL)


def test_adapters_and_frozen_weights_are_opened_as_they_were_trained(tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8.0, "targets": ["*.wq", "*.w2"]}
    step = write_checkpoint(tmp_path / "step-1", CAUSAL, fine_tuning={"lora": lora})
    export(checkpoint.read(step), tmp_path / "merged", tokenizer=TokenizerConfig(kind="byte"))
    opened = open_model(step)
    rows = embed(opened, ["ACGT"], layer="norm", gradients=True)
    close(rows.detach(), embed(tmp_path / "merged", ["ACGT"], layer="norm"))
    rows.sum().backward()
    fresh_parameters = {name for name, parameter in opened.model.named_parameters() if parameter.grad is None}
    assert fresh_parameters == {"output.weight"}


def test_a_tied_model_and_other_types_are_opened(tmp_path: Path) -> None:
    step = write_checkpoint(tmp_path / "step-1", CAUSAL.replace(tie_embeddings=True))
    opened = open_model(step, dtype=torch.bfloat16)
    assert opened.model.output.weight is opened.model.tok_embeddings.weight
    half, whole = (embed(model, ["ACGT"], layer="norm") for model in (opened, open_model(step)))
    assert half.dtype == whole.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1


def test_the_tokenizer_must_be_that_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = write_checkpoint(tmp_path / "step-1", CAUSAL)
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "another")
    with pytest.raises(EosMismatchError, match="ids are of a tokenizer with fingerprint byte"):
        open_model(step)


def test_gradients_reach_every_parameter_up_to_the_layer(opened: OpenedModel) -> None:
    sequences = random_sequences(3, [5, 20])
    assert not embed(opened, sequences, layer="layers.0").requires_grad
    rows = embed(opened, sequences, layer="layers.0", gradients=True)
    rows.square().sum().backward()
    touched = {name for name, parameter in opened.model.named_parameters() if parameter.grad is not None}
    opened.model.zero_grad()
    below = {name for name, _ in opened.model.named_parameters() if name.startswith(("tok_embeddings", "layers.0"))}
    assert touched == below


def test_layers_are_chosen_by_name_or_glob(opened: OpenedModel) -> None:
    model = opened.model
    assert choose_layers(model, ["norm", "layers.*"]) == ["layers.0", "layers.1", "norm"], "in the model's order"
    assert choose_layers(model, ["layers.[1-9].*norm"]) == ["layers.1.attention_norm", "layers.1.ffn_norm"]
    with pytest.raises(ConfigError, match=r"^layer 'layers.2': .* did you mean 'layers.[01]' or 'layers.[01]'"):
        choose_layers(model, ["layers.2"])
    with pytest.raises(ConfigError, match="names 2 layers; give a list"):
        embed(opened, ["A"], layer="layers.*")
    assert "before the final norm" in meaning("layers.1")
    assert "after the final norm" in meaning("norm")
    found = widths(opened)
    assert list(found) == choose_layers(model, ["*", "*.*", "*.*.*", "*.*.*.*"])
    assert (found["layers.1"], found["layers.0.feed_forward.w1"], found["output"]) == (32, 48, 512)


def test_a_person_is_told_of_long_sequences_and_mapped_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = SequenceFiles([str(write_fasta(tmp_path / "x.fasta", ["MkVj", "A" * 70, "A" * 80]))])
    opened = ready(ENCODER, build_tokenizer(TokenizerConfig(kind="protein", on_unknown="map")))
    assert [len(document.ids) for document in read_documents(opened, files, files)] == [6, 72, 82]
    said = capsys.readouterr().err
    assert "s1 has 72 tokens, and the model was trained on rows of 64" in said
    assert "s2" not in said
    assert "2 letters are none of the vocabulary" in said


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_in_place_of_a_text(temperature: float, value: float) -> None:
    opened = ready(CAUSAL, BYTE)
    with torch.no_grad():
        opened.model.get_parameter("layers.1.feed_forward.w2.weight")[3, 5] = value
    with pytest.raises(ModelError) as caught:
        sample(opened, "pack", temperature=temperature)
    assert str(caught.value) == (
        "random: no text: what the model predicts is not finite; layers.1.feed_forward.w2.weight is not"
    )


def test_activations_that_overflow_are_told_from_weights_that_are_not_finite() -> None:
    opened = ready(CAUSAL, BYTE)
    with torch.no_grad():
        opened.model.norm.weight.fill_(3e38)
        opened.model.get_parameter("output.weight").fill_(3e38)
    with pytest.raises(ModelError, match="its parameters are, so its activations overflow"):
        sample(opened, "pack")


def test_a_run_ends_with_a_line_where_its_weights_give_no_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path, steps=1))])
    trainer = Trainer(config, join(config), StopRequest())
    with torch.no_grad():
        trainer.model.tok_embeddings.weight[:, 0] = torch.nan
    trainer.train()
    trainer.close()
    output = capsys.readouterr().out
    assert "warning: a sample: no text: what the model predicts is not finite; tok_embeddings.weight is not" in output
    assert (tmp_path / "run" / "checkpoint" / "step-1" / "manifest.json").exists()

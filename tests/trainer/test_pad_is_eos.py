"""Padding with the eos: labels go by position, so the eos is learnt; left out by id, as is common, it never is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from cistron.datasets.config import DataConfig
from cistron.datasets.loading import Batch, Loader, RowSettings
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers import HFTokenizer
from cistron.models.attention import DocumentMask
from cistron.models.config import PRESETS
from cistron.models.decoder import Decoder
from cistron.models.init import init_weights
from cistron.trainer.inference import sample_tokens

WORDS = ["one", "two", "three", "four", "<end>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    """Words, of which "<end>" ends documents and pads rows, as tokenizers without padding are commonly used."""
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, "one"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.add_special_tokens(["<end>"])
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    library.save(str(path))
    return HFTokenizer(str(path), eos_token="<end>", pad_token="<end>")


def learn(tokenizer: HFTokenizer, folder: Path, labels_of: Callable[[Batch], torch.Tensor]) -> list[list[int]]:
    """Train on counting to four, a document per row; returns how 20 samples continue "one", up to 12 tokens."""
    counts = " ".join(WORDS[:4])
    (folder / "counts.jsonl").write_text("".join(json.dumps({"text": counts}) + "\n" for _ in range(64)))
    source = SourceConfig(name="counts", format="jsonl", paths=[str(folder / "counts.jsonl")])
    config = DataConfig(sources=[source], lanes=4, layout="padded")
    shape = {"vocab_size": len(WORDS), "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 32}
    model = Decoder(PRESETS["debug"].replace(**shape))
    init_weights(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    mask = DocumentMask(tokenizer.eos_id, tokenizer.pad_id)
    with Loader(config, tokenizer, RowSettings(seq_len=8, seed=0, batch_size=8)) as loader:
        for _ in range(60):
            batch = loader.next()
            assert batch is not None
            model(batch.tokens, batch.positions, mask.build(batch.sequence_ids), labels_of(batch)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    prompt = tokenizer.encode(b"one").tolist()
    texts = [
        tokenizer.decode(sample_tokens(model, tokenizer, prompt, max_new_tokens=12, temperature=1.0, seed=seed))
        for seed in range(20)
    ]
    return [tokenizer.encode(text.encode()).tolist() for text in texts]


def test_a_model_trained_with_pad_equal_to_eos_stops(tokenizer: HFTokenizer, tmp_path: Path) -> None:
    assert tokenizer.pad_id == tokenizer.eos_id
    samples = learn(tokenizer, tmp_path, lambda batch: batch.labels)
    assert sum(ids == [1, 2, 3] for ids in samples) >= 18


def test_the_recipe_that_ignores_the_pad_id_in_the_loss_never_learns_to_stop(tokenizer: HFTokenizer, tmp_path: Path) -> None:
    samples = learn(tokenizer, tmp_path, lambda batch: batch.labels.masked_fill(batch.labels == tokenizer.pad_id, -100))
    assert sum(ids[:3] == [1, 2, 3] for ids in samples) >= 18, "all else it does learn"
    assert sum(len(ids) == 12 for ids in samples) >= 18

"""How many bytes an id stands for, summed over a document, is how many bytes the document has."""

from pathlib import Path

import pytest
from cistron.datasets.tokenizers import HFTokenizer, TokenizerConfig, build_tokenizer, token_bytes
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = ["", "pack the row", "für Grün, 100 % — naïve", "蛋白质 \U0001f9ec\n\n", "\x01\x02 control"]


def byte_level(folder: Path, *, prefix: bool = False) -> HFTokenizer:
    """A small byte-level BPE, saved and read again."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    tokenizer.add_tokens([AddedToken("µ-tool", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return HFTokenizer(str(folder), eos_token="<eos>")


@pytest.mark.parametrize("text", [*TEXTS, "a µ-tool here, and <eos> as text"])
def test_the_ids_of_a_text_stand_for_its_bytes(tmp_path: Path, text: str) -> None:
    for tokenizer in (ByteTokenizer(), byte_level(tmp_path)):
        sizes = token_bytes(tokenizer)
        assert sizes is not None
        ids = tokenizer.encode_batch([text.encode()]).ids
        assert sizes[ids].sum() == len(text.encode())
        assert sizes[ids[-1]] == 0, "the eos"


def test_a_letter_is_a_byte_whatever_it_was_mapped_to() -> None:
    for kind, text in (("protein", b"MKVjk*"), ("dna", b"acgtUN-!")):
        tokenizer = build_tokenizer(TokenizerConfig(kind=kind, on_unknown="map"))
        sizes = token_bytes(tokenizer)
        assert sizes is not None
        assert sizes[tokenizer.encode_batch([text]).ids].sum() == len(text)
        assert not sizes[[tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id]].any()


def test_where_ids_do_not_stand_for_bytes_no_number_is_given(tmp_path: Path) -> None:
    assert token_bytes(byte_level(tmp_path, prefix=True)) is None, "a space is added"
    words = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "row": 2}, unk_token="<unk>"))
    words.add_special_tokens(["<eos>"])
    words.save(str(tmp_path / "tokenizer.json"))
    assert token_bytes(HFTokenizer(str(tmp_path), eos_token="<eos>")) is None

"""No document can produce an eos, and every special id is stated with the place it comes from."""

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from cistron.datasets.errors import DataConfigError
from cistron.datasets.tokenizers import HFTokenizer, TokenizeError, TokenizerConfig, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE trained on a sentence, its eos and its config."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOS, "<pad>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the cat"] * 9, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [0, 7], "vocab_size": 320, "dim": 3}))
    return folder


def _copy(folder: Path, target: Path, settings: dict[str, Any] | None) -> Path:
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    if settings is not None:
        (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


def test_byte_ids_are_the_bytes() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte"))
    assert tokenizer.encode("aé".encode()).tolist() == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 0xC3, 0xA9, 0, 98, 300]) == "aé\x00b\ufffd"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 1, 512)


def test_a_nul_byte_is_refused_where_it_stands() -> None:
    with pytest.raises(TokenizeError, match="NUL") as caught:
        build_tokenizer(TokenizerConfig(kind="byte")).encode(b"ab\0c")
    assert caught.value.offset == 2


@pytest.mark.parametrize("kind", ["byte", "hf"])
@given(texts=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_a_batch_is_its_documents_each_with_its_eos(folder: Path, kind: str, texts: list[str]) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind, path=str(folder) if kind == "hf" else None))
    assert tokenizer.kind == kind
    documents = [text.encode() for text in texts]
    alone = [[*tokenizer.encode(document).tolist(), tokenizer.eos_id] for document in documents]
    ids, lengths, _ = tokenizer.encode_batch(documents)
    assert ids.dtype == tokenizer.dtype
    assert ids.tolist() == [one for document in alone for one in document]
    assert lengths == [len(document) for document in alone]


@pytest.mark.parametrize(
    ("documents", "index", "offset"), [([b"a", b"", b"b\0", b"\0"], 2, 1), ([b"\0\0"], 0, 0), ([b"a", b"\0"], 1, 0)]
)
def test_the_first_document_with_a_nul_byte_is_named(documents: list[bytes], index: int, offset: int) -> None:
    with pytest.raises(TokenizeError, match="NUL") as caught:
        build_tokenizer(TokenizerConfig(kind="byte")).encode_batch(documents)
    assert (caught.value.index, caught.value.offset) == (index, offset)


@pytest.mark.parametrize("travelled", [False, True], ids=["here", "in-a-worker"])
def test_special_token_text_in_a_document_stays_text(folder: Path, travelled: bool) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="hf", path=str(folder)))
    if travelled:
        tokenizer = pickle.loads(pickle.dumps(tokenizer))
    text = f"the {EOS} cat<pad>"
    ids = tokenizer.encode(text.encode())
    assert not {tokenizer.eos_id, 1} & set(ids.tolist())
    assert tokenizer.decode(ids) == text


def test_a_document_is_neither_truncated_nor_padded(folder: Path) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="hf", path=str(folder)))
    assert tokenizer.decode(tokenizer.encode(b"a")) == "a"
    assert tokenizer.decode(tokenizer.encode(b"dog " * 40)) == "dog " * 40


def test_special_ids_come_with_the_place_they_are_written(folder: Path) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="hf", path=str(folder)))
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 0)
    assert tokenizer.where == f"{folder}/tokenizer.json + {folder}/tokenizer_config.json"
    assert tokenizer.hf_config == {"where": f"{folder}/config.json", "eos_token_id": [0, 7], "vocab_size": 320}
    assert build_tokenizer(TokenizerConfig(kind="hf", path=str(folder / "tokenizer.json"), pad_token="<pad>")).pad_id == 1


def test_a_special_token_may_be_written_as_an_object(folder: Path, tmp_path: Path) -> None:
    settings = {"eos_token": {"content": EOS, "special": True}, "pad_token": "<pad>"}
    tokenizer = build_tokenizer(TokenizerConfig(kind="hf", path=str(_copy(folder, tmp_path, settings))))
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.hf_config) == (0, 1, None)


@pytest.mark.parametrize("added", [AddedToken("<fill>", special=False), None], ids=["added", "of-the-model"])
def test_a_pad_that_a_document_could_hold_is_refused(folder: Path, tmp_path: Path, added: AddedToken | None) -> None:
    pad = added.content if added else "a"
    inner = Tokenizer.from_file(str(_copy(folder, tmp_path, {"eos_token": EOS, "pad_token": pad}) / "tokenizer.json"))
    inner.add_tokens([added] if added else [])
    inner.save(str(tmp_path / "tokenizer.json"))
    for argument in (None, pad):
        with pytest.raises(DataConfigError, match=rf"tokenizer\.pad_token: '{pad}' is not marked as special"):
            build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path), pad_token=argument))


@pytest.mark.parametrize(
    ("key", "value"),
    [("eos_token_id", "0"), ("eos_token_id", [0, None]), ("pad_token_id", [1]), ("pad_token_id", True), ("vocab_size", 32.0)],
)
def test_a_config_whose_ids_are_no_integers_is_refused(folder: Path, tmp_path: Path, key: str, value: object) -> None:
    _copy(folder, tmp_path, {"eos_token": EOS})
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    with pytest.raises(DataConfigError, match=re.escape(f"{tmp_path}/config.json: {key} is {value!r}; it must be an integer")):
        build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path)))


def test_a_config_may_state_null(folder: Path, tmp_path: Path) -> None:
    _copy(folder, tmp_path, {"eos_token": EOS})
    (tmp_path / "config.json").write_text('{"pad_token_id": null, "eos_token_id": 0}')
    written = build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path))).hf_config
    assert written == {"where": f"{tmp_path}/config.json", "pad_token_id": None, "eos_token_id": 0}


def test_no_bos_is_added_to_a_document(folder: Path, tmp_path: Path) -> None:
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 1)])
    assert inner.encode("the cat").ids[0] == 1
    _copy(folder, tmp_path, {"eos_token": EOS, "bos_token": "<pad>", "add_bos_token": True})
    inner.save(str(tmp_path / "tokenizer.json"))
    assert 1 not in build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path))).encode(b"the cat")


@pytest.mark.parametrize("settings", [None, {}, {"eos_token": None}])
def test_an_eos_that_nobody_states_is_refused(folder: Path, tmp_path: Path, settings: dict[str, Any] | None) -> None:
    with pytest.raises(DataConfigError, match=r"tokenizer\.eos_token is not set"):
        build_tokenizer(TokenizerConfig(kind="hf", path=str(_copy(folder, tmp_path, settings))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "hf"}, r"tokenizer\.path is not set"),
        ({"kind": "hf", "path": "/absent"}, r"tokenizer\.path: there is no tokenizer\.json at /absent"),
        ({"kind": "byte", "path": "/absent"}, r"tokenizer\.path: '/absent' means nothing"),
    ],
)
def test_a_wrong_setting_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataConfigError, match=message):
        build_tokenizer(TokenizerConfig(**arguments))


def test_an_unknown_kind_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match=r"no such tokenizer, did you mean 'protein'\?"):
        TokenizerConfig(kind="proteins")


def test_an_unknown_special_token_is_refused(folder: Path) -> None:
    with pytest.raises(DataConfigError, match=r"tokenizer\.pad_token: '<no>' is not a token of"):
        build_tokenizer(TokenizerConfig(kind="hf", path=str(folder), pad_token="<no>"))


def test_a_mask_and_what_is_lacking_are_stated_by_the_settings_or_an_argument(folder: Path, tmp_path: Path) -> None:
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.add_special_tokens(["<mask>", "<unk>"])
    inner.add_tokens([AddedToken("cat", special=False)])
    settings = {"eos_token": EOS, "mask_token": {"content": "<mask>"}, "unk_token": "<unk>"}
    _copy(folder, tmp_path, settings)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path)))
    ids = {name: inner.token_to_id(name) for name in ("<mask>", "<unk>", "<pad>", EOS, "cat")}
    assert (tokenizer.mask_id, tokenizer.unk_id, tokenizer.bos_id) == (ids["<mask>"], ids["<unk>"], None)
    assert {ids["<mask>"], ids["<unk>"], ids["<pad>"], ids[EOS]} <= tokenizer.special_ids
    assert ids["cat"] in tokenizer.residue_ids
    assert sorted([*tokenizer.residue_ids, *tokenizer.special_ids]) == sorted(inner.get_vocab().values())
    assert tokenizer.mask_id not in tokenizer.encode(b"the <mask>"), "in a document it is text"
    assert build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path), mask_token="<unk>")).mask_id == ids["<unk>"]
    with pytest.raises(DataConfigError, match=r"tokenizer\.mask_token: 'cat' is not marked as special"):
        build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path), mask_token="cat"))

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS, "unk_token": EOS}))
    assert build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path))).unk_id is None, (
        "a document with an eos is refused: it never stands there"
    )


def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataConfigError, match=r"tokenizer\.path: .* is not a tokenizer\.json"):
        build_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path)))


def test_an_eos_not_marked_special_is_text_in_a_document(folder: Path, tmp_path: Path) -> None:
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.add_tokens([AddedToken("</s>", special=False)])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(str(tmp_path), eos_token="</s>")
    assert tokenizer.vocab_size == tokenizer.eos_id + 1
    ids, lengths, _ = tokenizer.encode_batch([b"the cat", b"the </s> cat", b"</s>"])
    assert np.flatnonzero(ids == tokenizer.eos_id).tolist() == [end - 1 for end in np.cumsum(lengths)]
    assert tokenizer.decode(ids) == "the cat</s>the </s> cat</s></s></s>"


def test_bad_utf8_is_refused_where_it_stands(folder: Path) -> None:
    with pytest.raises(TokenizeError, match="UTF-8") as caught:
        build_tokenizer(TokenizerConfig(kind="hf", path=str(folder))).encode_batch([b"the cat", b"", b"abc\xff", b"\xff"])
    assert (caught.value.index, caught.value.offset) == (2, 3)


def test_vocabulary_size_follows_the_largest_id(tmp_path: Path) -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 90, "<e>": 5}, unk_token="a"))
    inner.save(str(tmp_path / "tokenizer.json"))
    assert HFTokenizer(str(tmp_path), eos_token="<e>").vocab_size == 91


def _saved_again(content: dict[str, Any], change: str) -> dict[str, Any]:
    """A tokenizer.json as another program or version writes it, with the same ids for every document."""
    model = content["model"]
    match change:
        case "around":
            content["post_processor"] = {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": False,
                "use_regex": True,
            }
            content |= {"decoder": None, "truncation": None, "padding": None}
        case "order":
            content["model"] = dict(reversed(model.items())) | {"vocab": dict(reversed(model["vocab"].items()))}
            content = dict(reversed(content.items()))
        case "merges":
            model["merges"] = [" ".join(pair) for pair in model["merges"]]
        case "older":
            for key in ("ignore_merges", "byte_fallback", "continuing_subword_prefix"):
                del model[key]
            del content["pre_tokenizer"]["use_regex"]
        case "empty":
            model |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
            content["normalizer"] = {"type": "Sequence", "normalizers": []}
            content["pre_tokenizer"]["trim_offsets"] = False
        case "flags":
            content["added_tokens"][1] |= {"lstrip": True, "normalized": True}
    return content


def _another(content: dict[str, Any], change: str) -> dict[str, Any]:
    """A tokenizer.json with other ids for some documents."""
    match change:
        case "normalizer":
            content["normalizer"] = {"type": "NFKC"}
        case "pre_tokenizer":
            content["pre_tokenizer"]["use_regex"] = False
        case "vocabulary":
            vocabulary = content["model"]["vocab"]
            vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        case "merges":
            content["model"]["merges"].reverse()
        case "model":
            content["model"]["ignore_merges"] = True
        case "added":
            content["added_tokens"].append(content["added_tokens"][1] | {"id": 400, "content": "<t>", "special": False})
        case "special":
            content["added_tokens"].append(content["added_tokens"][1] | {"id": 400, "content": "<t>"})
    return content


@pytest.mark.parametrize("change", ["around", "order", "merges", "older", "empty", "flags"])
def test_a_tokenizer_that_is_saved_again_keeps_its_fingerprint(folder: Path, tmp_path: Path, change: str) -> None:
    before = HFTokenizer(str(folder))
    content = _saved_again(json.loads((_copy(folder, tmp_path, {"eos_token": EOS}) / "tokenizer.json").read_text()), change)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    after = HFTokenizer(str(tmp_path))
    assert after.fingerprint == before.fingerprint
    assert after.former_fingerprints != before.former_fingerprints, "which are of the file's bytes"
    assert after.encode(b"the cat <pad> sat").tolist() == before.encode(b"the cat <pad> sat").tolist()


@pytest.mark.parametrize("change", ["normalizer", "pre_tokenizer", "vocabulary", "merges", "model", "added", "special"])
def test_a_tokenizer_with_other_ids_has_another_fingerprint(folder: Path, tmp_path: Path, change: str) -> None:
    content = _another(json.loads((_copy(folder, tmp_path, {"eos_token": EOS}) / "tokenizer.json").read_text()), change)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert HFTokenizer(str(tmp_path)).fingerprint != HFTokenizer(str(folder)).fingerprint


def test_byte_and_hf_ids_are_integers(folder: Path) -> None:
    for tokenizer in (
        build_tokenizer(TokenizerConfig(kind="byte")),
        build_tokenizer(TokenizerConfig(kind="hf", path=str(folder))),
    ):
        ids = tokenizer.encode(b"the cat")
        assert np.issubdtype(ids.dtype, np.integer)
        assert ids.ndim == 1


def write_panicking(folder: Path) -> Path:
    """Write a byte-level tokenizer whose expression exceeds its limit of retries on many a's before another letter."""
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    split = pre_tokenizers.Split(Regex(r"(?:a|aa)+$|."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.add_special_tokens([EOS])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


PANIC = "a" * 1000 + "b"


def test_a_document_at_which_the_library_panics_is_told_by_its_place(tmp_path: Path) -> None:
    tokenizer = HFTokenizer(str(write_panicking(tmp_path)), EOS)
    with pytest.raises(TokenizeError, match=r"library fails at this document: PanicException: .*retry-limit") as bad:
        tokenizer.encode_batch([b"sound", PANIC.encode(), b"aaa"])
    assert bad.value.index == 1
    assert tokenizer.encode_batch([b"sound"]).lengths == [6], "what follows a panic is encoded as ever"


def test_any_other_failure_of_the_library_is_told_alike_and_an_interrupt_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Tokenizer(models.WordLevel({"known": 0, EOS: 1}, unk_token="nowhere"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([EOS])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(str(tmp_path), EOS)
    with pytest.raises(TokenizeError, match=r"fails at this document: Exception: WordLevel error") as bad:
        tokenizer.encode_batch([b"known", b"known known", b"strange"])
    assert bad.value.index == 2
    for passes in (KeyboardInterrupt, MemoryError):
        monkeypatch.setattr(tokenizer, "_tokenizer", SimpleNamespace(encode_batch_fast=Mock(side_effect=passes)))
        with pytest.raises(passes):
            tokenizer.encode_batch([b"known"])

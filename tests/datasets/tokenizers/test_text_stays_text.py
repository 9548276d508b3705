"""Whatever the model of a tokenizer, a document that spells special tokens has none; what is lacking is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from cistron.datasets.errors import DataConfigError
from cistron.datasets.tokenizers import HFTokenizer, TokenizeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROLES = {
    "eos_token": "<end>",
    "pad_token": "[PAD]",
    "mask_token": "<m>",
    "unk_token": "<?>",
    "cls_token": "cls",
    "bos_token": "▁b",
}
SPECIAL = list(ROLES.values())
CORPUS = ["the cat sat on the mat", "<end> <m> cls [PAD] <?> ▁b", "a<end>b<m>c[PAD]d<?>", "cat cats class"] * 3
PRE_TOKENIZERS = {
    "none": None,
    "words": pre_tokenizers.WhitespaceSplit(),
    "punctuation": pre_tokenizers.Whitespace(),
    "metaspace": pre_tokenizers.Metaspace(prepend_scheme="never"),
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
}
NORMALIZERS = {
    "none": None,
    "lower": normalizers.Lowercase(),
    "strip": normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()]),
}
PIECES = [
    *SPECIAL,
    *(f" {token} " for token in SPECIAL),
    "<END>",
    "\uff1cend\uff1e",
    "CLS",
    "the cat",
    "mats",
    "é",
    "中",
    " ",
    "<",
    ">",
    "<en",
    "d>",
]


def write(folder: Path, made: Tokenizer, roles: dict[str, str]) -> Path:
    """Save a tokenizer and the roles of its tokens."""
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


def trained(model: str, pre: str, normalizer: str, *, unknown: bool, marked: bool, added: bool) -> Tokenizer:
    """A tokenizer of a model, trained on a corpus that spells its special tokens."""
    named = {"unk_token": "<?>"} if unknown or model in ("WordLevel", "WordPiece") else {}
    made = Tokenizer(models.Unigram() if model == "Unigram" else getattr(models, model)(**named))
    if PRE_TOKENIZERS[pre] is not None:
        made.pre_tokenizer = PRE_TOKENIZERS[pre]
    if NORMALIZERS[normalizer] is not None:
        made.normalizer = NORMALIZERS[normalizer]
    made.decoder = {"bytes": decoders.ByteLevel(), "metaspace": decoders.Metaspace(prepend_scheme="never")}.get(
        pre, decoders.Fuse()
    )
    more: dict[str, Any] = {"unk_token": "<?>"} if model == "Unigram" else {}
    if model != "WordLevel" and pre == "bytes":
        more["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    size = 400 if pre == "bytes" else 80
    trainer = getattr(trainers, f"{'Bpe' if model == 'BPE' else model}Trainer")(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False, **more
    )
    made.train_from_iterator(CORPUS, trainer)
    if added:
        made.add_tokens([AddedToken("mats", special=False)])
    content = json.loads(made.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in SPECIAL and (marked or token["content"] in ("[PAD]", "<m>"))
    return Tokenizer.from_str(json.dumps(content))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.sampled_from(["BPE", "Unigram", "WordPiece", "WordLevel"]),
    pre=st.sampled_from(sorted(PRE_TOKENIZERS)),
    normalizer=st.sampled_from(sorted(NORMALIZERS)),
    unknown=st.booleans(),
    marked=st.booleans(),
    added=st.booleans(),
    texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=4),
)
def test_no_document_holds_a_special_token(
    tmp_path: Path, model: str, pre: str, normalizer: str, unknown: bool, marked: bool, added: bool, texts: list[str]
) -> None:
    made = trained(model, pre, normalizer, unknown=unknown, marked=marked, added=added)
    roles = {role: token for role, token in ROLES.items() if unknown or model != "BPE" or role != "unk_token"}
    tokenizer = HFTokenizer(str(write(tmp_path, made, roles)))
    special = {made.token_to_id(token) for token in (SPECIAL if marked else roles.values())}
    assert tokenizer.special_ids == special
    assert tokenizer.unk_id == (made.token_to_id("<?>") if "unk_token" in roles else None)
    lossless = pre in ("bytes", "metaspace") and normalizer == "none" and model in ("BPE", "Unigram")
    for text in texts:
        try:
            ids, _, mapped = tokenizer.encode_batch([text.encode()])
        except TokenizeError as error:
            assert (model, unknown, "is not in the vocabulary" in error.problem) == ("BPE", False, True)  # noqa: PT017
            continue
        body = ids[:-1].tolist()
        lacking = body.count(tokenizer.unk_id)
        assert not (special - {tokenizer.unk_id}) & set(body)
        assert (mapped or [0]) == [lacking]
        if lossless and not lacking and (pre == "bytes" or "▁" not in text):
            assert tokenizer.decode(body) == text


@pytest.mark.parametrize("whole", [False, True], ids=["merged", "whole-words"])
def test_merges_that_build_a_special_token_are_left_out(tmp_path: Path, whole: bool) -> None:
    vocabulary = {token: index for index, token in enumerate(["<", "q", ">", "<q", "<q>", "<q>x", "x", "q>"])}
    merges = [("<", "q"), ("<q", ">"), ("<q>", "x"), ("q", ">")]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="x", ignore_merges=whole))
    made.add_special_tokens(["<q>"])
    tokenizer = HFTokenizer(str(write(tmp_path, made, {"eos_token": "<q>"})))
    assert [tokenizer.decode([one]) for one in tokenizer.encode(b"<q>x<qq>")] == ["<q", ">", "x", "<q", "q>"]
    assert tokenizer.decode([4]) == "<q>", "the eos itself keeps id and name"


def test_a_token_that_only_the_settings_call_special_is_none_of_a_document(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({"<": 0, "s": 1, ">": 2}, []))
    made.add_tokens([AddedToken("<s>", special=False), AddedToken("<>", special=False)])
    roles = {"eos_token": "<>", "sep_token": {"content": "<s>"}}
    tokenizer = HFTokenizer(str(write(tmp_path, made, roles)))
    assert tokenizer.encode(b"<s><>s").tolist() == [0, 1, 2, 0, 2, 1]
    assert tokenizer.special_ids == {3, 4}
    tokenizer = HFTokenizer(str(write(tmp_path, made, {"eos_token": "<>", "additional_special_tokens": ["<s>"]})))
    assert tokenizer.encode(b"<s>").tolist() == [0, 1, 2]


@pytest.mark.parametrize("fallback", [False, True])
def test_letters_that_a_bpe_would_leave_out_are_refused_where_they_stand(tmp_path: Path, fallback: bool) -> None:
    known = [f"<0x{byte:02X}>" for byte in range(256) if byte != 0xC3] if fallback else []
    vocabulary = {token: index for index, token in enumerate([*"ACGT", *known, "<e>"])}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=fallback))
    made.add_special_tokens(["<e>"])
    tokenizer = HFTokenizer(str(write(tmp_path, made, {"eos_token": "<e>"})))
    assert (tokenizer.unk_id, tokenizer.vocab_size) == (None, len(vocabulary))
    assert tokenizer.encode(b"TACG").tolist() == [3, 0, 1, 2]
    with pytest.raises(TokenizeError, match=r"'Ü' is not in the vocabulary of .*, which has no unknown token") as caught:
        tokenizer.encode_batch([b"ACGT", "GATÜ".encode(), "é".encode()])
    assert (caught.value.index, caught.value.offset) == (1, 3)


def test_an_unknown_token_that_is_the_eos_never_ends_a_document(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({"<e>": 0, "a": 1}, [], unk_token="<e>"))
    made.add_special_tokens(["<e>"])
    tokenizer = HFTokenizer(str(write(tmp_path, made, {"eos_token": "<e>", "unk_token": "<e>"})))
    assert (tokenizer.unk_id, tokenizer.encode(b"aa").tolist()) == (None, [1, 1])
    with pytest.raises(TokenizeError, match="'b' is not in the vocabulary"):
        tokenizer.encode(b"ab")
    for model in (models.WordLevel({"<e>": 0, "a": 1}, unk_token="<e>"), models.Unigram([("<e>", 0.0), ("a", -1.0)], 0)):
        made = Tokenizer(model)
        made.add_special_tokens(["<e>"])
        with pytest.raises(DataConfigError, match="writes its eos '<e>' for what its vocabulary lacks"):
            HFTokenizer(str(write(tmp_path, made, {"eos_token": "<e>"})))


def test_unknown_tokens_are_counted_in_each_document(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"<e>": 0, "[U]": 1, "row": 2}, unk_token="[U]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<e>"])
    tokenizer = HFTokenizer(str(write(tmp_path, made, {"eos_token": "<e>"})))
    ids, lengths, mapped = tokenizer.encode_batch([b"row row", b"a [U] row <e>", b"", b"b"])
    assert ids.tolist() == [2, 2, 0, 1, 1, 2, 1, 0, 0, 1, 0]
    assert (lengths, mapped) == ([3, 5, 1, 2], [0, 3, 0, 1])
    assert tokenizer.encode_batch([b"row", b""]).mapped is None


def test_a_special_token_that_a_text_reaches_all_the_same_is_refused_where_it_stands(tmp_path: Path) -> None:
    """U+FDD0, reserved for programs, begins the names of special pieces: a text with one is told of."""
    made = Tokenizer(models.Unigram([("<?>", 0.0), ("<e>", 0.0), ("a", -1.0)], 0))
    made.add_special_tokens(["<?>", "<e>"])
    tokenizer = HFTokenizer(str(write(tmp_path, made, {"eos_token": "<e>"})))
    with pytest.raises(TokenizeError, match=r"encodes to the special token '<e>' \(id 1\) of .*remove its text") as caught:
        tokenizer.encode_batch([b"a<e>", "aa\ufdd0<e>a".encode()])
    assert (caught.value.index, caught.value.offset) == (1, 2)


def test_the_last_digits_of_a_score_are_no_other_tokenizer(tmp_path: Path) -> None:
    found = []
    for score in (-1.5347911610911837, -1.5347911610911835, -1.5348):
        made = Tokenizer(models.Unigram([("<?>", 0.0), ("<e>", 0.0), ("a", score)], 0))
        made.add_special_tokens(["<e>"])
        found.append(HFTokenizer(str(write(tmp_path, made, {"eos_token": "<e>"}))).fingerprint)
    assert found[0] == found[1] != found[2]

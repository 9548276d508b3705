"""Where tiktoken encodes, its ids are those of the tokenizers library; where they would not be, it does not."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from cistron.datasets.tokenizers import HFTokenizer
from cistron.datasets.tokenizers.tiktoken_backend import _pattern
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

EOS = "<|endoftext|>"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
CORPUS = [
    "The cat's on the mat, isn't it? They'll see; 'S 1234567 times.",
    "def encode(self, text):\n    return [self.ids[word] for word in text]\n\n\n\t\tpass  \r\n",
    "naïve façade, Straße, 東京は日本の首都である, 👩\u200d👩\u200d👧 🏳️\u200d🌈, العربية 42 ١٢٣, e\u0301te\u0301",
    "aaaaaaaaaaaaaaaaaaaa ================ ababababab      \n\n\n        x",
]
STYLES = ["gpt2", "llama3", "qwen"]


def _train(style: str, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    if style == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(LLAMA if style == "llama3" else QWEN), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = [EOS, "<pad>"] if style == "gpt2" else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([EOS, "<pad>"])
    return tokenizer


def _open(tokenizer: Tokenizer, folder: Path, changes: dict[str, Any] | None = None) -> HFTokenizer:
    content = json.loads(tokenizer.to_str())
    for key, value in (changes or {}).items():
        place = content
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        place[last] = value
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content))
    return HFTokenizer(str(file), EOS)


@pytest.fixture(scope="module", params=STYLES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[HFTokenizer, HFTokenizer]:
    """A tokenizer with the tiktoken backend and the same without."""
    folder = tmp_path_factory.mktemp("tiktoken")
    trained = _train(request.param, CORPUS * 3)
    fast, plain = _open(trained, folder), _open(trained, folder)
    assert fast.choose_backend(lambda: [text.encode() for text in CORPUS]).startswith("tiktoken encodes: its ")
    return fast, plain


def _assert_equal(pair: tuple[HFTokenizer, HFTokenizer], texts: list[str]) -> None:
    (ids, lengths, _), (expected, expected_lengths, _) = (each.encode_batch([text.encode() for text in texts]) for each in pair)
    assert ids.dtype == expected.dtype
    assert ids.tolist() == expected.tolist()
    assert lengths == expected_lengths


hard = st.text(st.sampled_from("aAbthe'sSlL 1239\n\r\t\u00a0\u3000\u0085.=<|>é東京e\u0301👩\u200d\ufdd0\x00"))
document = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    hard,
    st.lists(st.sampled_from([*CORPUS, EOS, "<pad>", "    ", "\n\n", "ab" * 300, "'\u017f"])).map("".join),
)


@given(texts=st.lists(document, max_size=5))
@example(texts=[])
@example(texts=["", EOS, f"x{EOS}", "\ufdd0", "\ufdd0\ufdd0a"])
def test_ids_and_lengths_are_those_of_the_library(pair: tuple[HFTokenizer, HFTokenizer], texts: list[str]) -> None:
    _assert_equal(pair, texts)


def test_every_kind_of_character_falls_into_the_same_words(pair: tuple[HFTokenizer, HFTokenizer]) -> None:
    characters = [chr(code) for code in (*range(0x3400), *range(0xD7A0, 0xD800), *range(0xF900, 0x11000, 3))]
    _assert_equal(pair, [f"a{c}b{c}1{c} {c}\n{c}'{c}" for c in characters])


def test_documents_beyond_a_thread_s_share_keep_their_order(pair: tuple[HFTokenizer, HFTokenizer]) -> None:
    _assert_equal(pair, [f"{number} {CORPUS[number % 4] * (number % 90)}" for number in range(300)])


@pytest.mark.parametrize("character", "a =\né")
def test_a_word_of_10_5_characters_is_encoded_at_once(pair: tuple[HFTokenizer, HFTokenizer], character: str) -> None:
    _assert_equal(pair, ["x", character * 10**5])


def test_spaces_beyond_tiktoken_s_stack_are_encoded_by_the_library(pair: tuple[HFTokenizer, HFTokenizer]) -> None:
    _assert_equal(pair, ["x", " " * 10**6 + "x", "y"])


def test_a_worker_keeps_the_backend(pair: tuple[HFTokenizer, HFTokenizer]) -> None:
    for tokenizer, proven in zip(pair, (True, False), strict=True):
        travelled = pickle.loads(pickle.dumps(tokenizer))
        assert (travelled._backend is not None) == proven
        _assert_equal((travelled, tokenizer), CORPUS)


def test_what_is_no_text_in_the_sample_is_passed_over(pair: tuple[HFTokenizer, HFTokenizer]) -> None:
    assert pair[0].choose_backend(lambda: [b"\xff", "the café".encode()[:-1]]).startswith("tiktoken encodes")
    assert pair[1].choose_backend(lambda: [b"\xff"]) == "tokenizers encodes: there is no text to compare tiktoken's ids on"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "a normalizer other than NFC"),
        ({"model.dropout": 0.1}, "not a plain BPE"),
        ({"pre_tokenizer.add_prefix_space": True}, "split into words"),
        ({"pre_tokenizer": None}, "split into words"),
    ],
)
def test_a_tokenizer_of_another_kind_has_no_tiktoken_backend(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    tokenizer = _open(_train("gpt2", CORPUS), tmp_path, changes)
    assert re.match(f"tokenizers encodes: .*{reason}", tokenizer.choose_backend(lambda: [b"the cat"]))


@pytest.mark.parametrize("style", STYLES)
def test_added_tokens_that_documents_may_hold_are_found_as_by_the_library(tmp_path: Path, style: str) -> None:
    trained = _train(style, CORPUS)
    trained.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in ("<think>", "<thi", "\uff5cé\uff5c", "k> <")]
    )
    trained.add_special_tokens(["<|x <think"])
    fast, plain = _open(trained, tmp_path), _open(trained, tmp_path)
    assert fast.choose_backend(lambda: [text.encode() for text in CORPUS]).startswith("tiktoken encodes")
    texts = [
        "<think>a  <thi",
        "a<think><think> \u0338b",
        "<|x <think>the",
        f"\uff5cé\uff5c{EOS}\uff5ce\u0301\uff5c",
        "k> <think>",
        "x <thinkk> <",
        "  <thi",
    ]
    _assert_equal((fast, plain), [*texts, "".join(texts), "\ufdd1 <think>", "\ufdd100000000"])
    assert trained.token_to_id("<think>") in fast.encode(b"a<think>b")


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ([AddedToken("<t>", special=False, lstrip=True)], "found in some places only, or that take spaces along"),
        ([AddedToken("t", special=False, single_word=True)], "found in some places only, or that take spaces along"),
        ([AddedToken("<t>", special=False, normalized=True)], "looked for in normalized text"),
    ],
)
def test_added_tokens_of_other_kinds_leave_no_tiktoken_backend(tmp_path: Path, added: list[AddedToken], reason: str) -> None:
    trained = _train("qwen", CORPUS)
    trained.add_tokens(added)
    assert reason in _open(trained, tmp_path).choose_backend(lambda: [b"the cat"])


def test_tokens_of_normalized_text_are_found_where_nothing_is_normalized(tmp_path: Path) -> None:
    trained = _train("gpt2", CORPUS)
    trained.add_tokens([AddedToken("<tool>", special=False, normalized=True)])
    fast, plain = _open(trained, tmp_path), _open(trained, tmp_path)
    assert fast.choose_backend(lambda: [b"the cat"]).startswith("tiktoken encodes")
    _assert_equal((fast, plain), ["a <tool> b<tool>", "<tool"])


def _small(merges: list[tuple[str, str]], tokens: list[str], ignore_merges: bool = False) -> Tokenizer:
    """The bytes, `tokens`, and what `merges` make."""
    names = [*pre_tokenizers.ByteLevel.alphabet(), *tokens, *dict.fromkeys("".join(pair) for pair in merges)]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([EOS])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        # b + c comes first, so that abc is never ab + c; tiktoken would take a + bc.
        (_small([("b", "c"), ("a", "b"), ("ab", "c")], []), "its merges do not lead to its token 'abc'"),
        (_small([("b", "c"), ("a", "b"), ("ab", "c")], [], ignore_merges=True), "do not lead to its token 'abc'"),
        (_small([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")], []), "merges that make 'abc' do not follow each other"),
        (_small([("a", "b")], ["cab"], ignore_merges=True), "its token 'cab' is a word that no merge makes"),
    ],
    ids=["unreachable", "unreachable-but-whole", "scattered", "orphan"],
)
def test_a_vocabulary_that_tiktoken_would_read_otherwise_has_no_tiktoken_backend(
    tmp_path: Path, tokenizer: Tokenizer, reason: str
) -> None:
    assert reason in _open(tokenizer, tmp_path).choose_backend(lambda: [b"the cat"])


@pytest.mark.parametrize(
    "tokenizer",
    [
        _small([("a", "b")], ["cab"]),  # never occurs
        _small([("a", "b")], ["<unused>"], ignore_merges=True),  # no word
        _small([("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")], [], ignore_merges=True),  # every way to abc is listed
        # As ranks of tiktoken are written: every way to a token, also of parts that come later.
        _small(
            [("a", "a"), ("a", "aaa"), ("aa", "aa"), ("aaa", "a"), ("a", "aa"), ("aa", "a"), ("b", "c")], [], ignore_merges=True
        ),
        # The bytes of abcd lead to a, bc, d: it is a whole word only.
        _small([("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")], [], ignore_merges=True),
    ],
    ids=["orphan", "no-word", "converted", "later-parts", "whole-only"],
)
def test_odd_tokens_that_both_libraries_read_alike_do_no_harm(tmp_path: Path, tokenizer: Tokenizer) -> None:
    opened = _open(tokenizer, tmp_path)
    texts = ["cab abc xabc <unused> ab bcab cabab", "abcabc bc", *("a" * length for length in range(12)), "abcd xabcd abcdabcd"]
    expected = opened.encode_batch([text.encode() for text in texts]).ids.tolist()
    assert opened.choose_backend(lambda: [b"abc cab"]).startswith("tiktoken encodes")
    assert opened.encode_batch([text.encode() for text in texts]).ids.tolist() == expected


def _split_by(expression: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}}


DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ\u30a0-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+""".replace(r"\r\n", "\r\n"),
]
mixed = st.text(st.sampled_from("ab1\uff12٣ \n\r\t.,!=<中文・゛か\u3099\u3097\u3040ーカé\u0301\x01\x02\u00a0'한"), max_size=30)


@given(texts=st.lists(mixed, min_size=1, max_size=5))
@example(texts=["  1", "か\u3099\u3097\x01\u3040a", " 中 文\n1\n", "\u3040\u3097カ", "!a中!1"])
def test_expressions_that_split_one_after_another_split_as_one(texts: list[str]) -> None:
    """Words are what the library merges within, so that a vocabulary of pairs tells where each begins."""
    library = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(each), "isolated") for each in DEEPSEEK])
    content = {"type": "Sequence", "pretokenizers": [_split_by(each)["pre_tokenizer"]["pretokenizers"][0] for each in DEEPSEEK]}
    content["pretokenizers"].append(_split_by("")["pre_tokenizer"]["pretokenizers"][1])
    every = {bytes([byte]): byte for byte in range(256)}
    tokens = {word.encode(): 0 for text in texts for word, _ in library.pre_tokenize_str(text)}
    ranks = every | {word: 256 + place for place, word in enumerate(word for word in tokens if word not in every)}
    encoding = tiktoken.Encoding("words", pat_str=_pattern(content), mergeable_ranks=ranks, special_tokens={})
    for text in texts:
        words = [word.encode() for word, _ in library.pre_tokenize_str(text)]
        assert [encoding.decode_single_token_bytes(one) for one in encoding.encode_ordinary(text)] == words


def test_words_that_are_kept_and_gaps_that_are_left_out_are_told_apart(tmp_path: Path) -> None:
    changes = _split_by("a+|1")
    changes["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    tokenizer = _open(_small([("1", "1"), ("a", "a"), ("a", "1")], []), tmp_path, changes)
    expected = tokenizer.encode_batch([b"aa1x1 a", b"xx"]).ids.tolist()
    assert tokenizer.choose_backend(lambda: [b"a"]).startswith("tiktoken encodes")
    assert tokenizer.encode_batch([b"aa1x1 a", b"xx"]).ids.tolist() == expected


def test_what_the_expression_leaves_out_is_kept(tmp_path: Path) -> None:
    tokenizer = _open(_small([("1", "1"), ("a", "1")], []), tmp_path, _split_by("a+"))
    expected = tokenizer.encode_batch([b"aa11 a", b"111"]).ids.tolist()
    assert tokenizer.choose_backend(lambda: [b"a"]).startswith("tiktoken encodes")
    assert tokenizer.encode_batch([b"aa11 a", b"111"]).ids.tolist() == expected


def test_other_ids_on_the_sample_leave_the_library_at_work(tmp_path: Path) -> None:
    """Oniguruma reads `{1,2}+` as one or two, again and again; tiktoken as one or two that are not given back."""
    tokenizer = _open(_small([("1", "1"), ("11", "11")], []), tmp_path, _split_by(r"\p{N}{1,2}+|\P{N}"))
    expected = tokenizer.encode_batch([b"1111"]).ids.tolist()
    assert tokenizer.choose_backend(lambda: [b"1111"]) == "tokenizers encodes: tiktoken gives other ids"
    assert tokenizer.encode_batch([b"1111"]).ids.tolist() == expected


def test_two_tokens_of_one_id_are_left_to_the_library(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    content = json.loads(made.to_str())
    vocabulary = content["model"]["vocab"]
    *_, before, last = sorted(vocabulary, key=vocabulary.__getitem__)
    vocabulary[before] = vocabulary[last]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = HFTokenizer(str(tmp_path), eos_token="<eos>")
    assert "has no id of its own" in tokenizer.choose_backend(lambda: [b"the cat"])

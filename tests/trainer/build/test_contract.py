"""The eos contract: if any party is wrong, the run ends before its first step with a table of who says what."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from cistron.datasets.rows import Packer
from cistron.datasets.tokenizers import HFTokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.models.attention import DocumentMask
from cistron.tests.helpers.jobs import forge, metrics, refusal, train_here, write_job, write_mixture, write_shards
from cistron.trainer.build import Contract, Statement
from cistron.trainer.build import parts as components
from cistron.trainer.errors import EosMismatchError
from hypothesis import given
from hypothesis import strategies as st

Refusal = Callable[..., str]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A small byte-level job."""
    return write_job(tmp_path, steps=4)


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a job that must be refused with exit status 2 before any step; returns the message."""
    return lambda config, *overrides: refusal(capsys, config, *overrides)


def hf_tokenizer(folder: Path, eos: str = "<|endoftext|>") -> Path:
    """A tokenizer.json with two special tokens, 0 and 1, and a tokenizer_config.json that says which ends documents."""
    special = ["<|endoftext|>", "<|other|>"]
    words = ["[UNK]", "pack", "row", "mask", "eos", "lane", "token", "cistron"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "pad_token": "<|other|>"}))
    return folder


def hf_job(folder: Path, **tokenizer: str) -> Path:
    """The same job through a tokenizer.json."""
    path = hf_tokenizer(folder / "tokenizer", **tokenizer)
    return write_job(folder, steps=4, more=f'[tokenizer]\nkind = "hf"\npath = "{path}"\n')


def test_a_wrong_toml_is_refused_beside_what_the_tokenizer_says(job: Path, refuse: Refusal) -> None:
    message = refuse(job, "--model.eos_id", "7")
    assert "tokenizer says eos is 0, TOML says 7" in message
    assert "model.eos_id" in message
    assert "byte tokenizer: Evo 2's CharLevelTokenizer convention" in message
    assert "where it is written" in message


def test_a_wrong_tokenizer_is_refused_beside_what_everyone_else_says(tmp_path: Path, refuse: Refusal) -> None:
    config = hf_job(tmp_path, eos="<|other|>")
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps({"eos_token_id": 0, "vocab_size": 10}))
    message = refuse(config, "--model.eos_id", "0")
    assert "tokenizer says eos is 1, attention mask says 0" in message
    assert "tokenizer says eos is 1, TOML says 0" in message
    assert "tokenizer says eos is 1, Hugging Face config says 0" in message
    assert str(tmp_path / "tokenizer" / "tokenizer_config.json") in message


def test_a_wrong_packer_is_refused(job: Path, refuse: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Packer.__init__

    def wrong(self: Packer, seq_len: int, eos_id: int, *others: Any, **more: Any) -> None:
        original(self, seq_len, 10, *others, **more)

    monkeypatch.setattr(Packer, "__init__", wrong)
    message = refuse(job)
    assert "tokenizer says eos is 0, packer says 10" in message
    assert "datasets.rows.Packer" in message


def test_a_wrong_attention_mask_is_refused(job: Path, refuse: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "DocumentMask", lambda **given: DocumentMask(**{**given, "eos_id": 10}))
    message = refuse(job)
    assert "packer says eos is 0, attention mask says 10" in message
    assert "models.attention.DocumentMask" in message


def test_a_wrong_pad_is_refused(job: Path, refuse: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "DocumentMask", lambda **given: DocumentMask(**{**given, "pad_id": 9}))
    assert "packer says pad is 1, attention mask says 9" in refuse(job)


def test_a_wrong_hugging_face_config_is_refused(tmp_path: Path, refuse: Refusal) -> None:
    config = hf_job(tmp_path)
    stated = tmp_path / "tokenizer" / "config.json"
    stated.write_text(json.dumps({"eos_token_id": 1, "vocab_size": 10}))
    message = refuse(config)
    assert "tokenizer says eos is 0, Hugging Face config says 1" in message
    assert str(stated) in message


def test_a_hugging_face_config_that_lists_several_ends_agrees_with_any_of_them(tmp_path: Path) -> None:
    config = hf_job(tmp_path)
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    train_here(config)
    assert metrics(config)[-1]["step"] == 4


def test_a_wrong_checkpoint_is_refused(job: Path, refuse: Refusal) -> None:
    train_here(job)
    state = job.parent / "run" / "checkpoint" / "step-4" / "state.json"
    saved = json.loads(state.read_text())
    saved["contract"]["eos"] = 3
    forge(state.parent, state.name, json.dumps(saved).encode())
    message = refuse(job, "--training.steps", "6")
    assert "tokenizer says eos is 0, checkpoint says 3" in message
    assert str(state) in message


def test_a_checkpoint_states_what_opens_and_hides_and_stands_for_the_unknown(tmp_path: Path, refuse: Refusal) -> None:
    config = write_job(tmp_path, steps=1, more='[tokenizer]\nkind = "protein"\n')
    for file in (tmp_path / "corpus").iterdir():
        file.write_text('{"text": "MKVLAAGW"}\n' * 60)
    train_here(config)
    state = tmp_path / "run" / "checkpoint" / "step-1" / "state.json"
    saved = json.loads(state.read_text())
    roles = {"eos": 2, "pad": 1, "bos": 0, "mask": 32, "unk": 3}
    assert saved["contract"] == {**roles, "vocab": 33, "tokenizer": "protein"}
    saved["contract"]["mask"] = 31
    forge(state.parent, state.name, json.dumps(saved).encode())
    message = refuse(config, "--training.steps", "2")
    assert "tokenizer says mask is 32, checkpoint says 31" in message
    assert "| bos 0, mask 32, unk 3" in message


def test_weights_of_a_run_with_another_eos_are_refused(tmp_path: Path, refuse: Refusal) -> None:
    bytes_job = write_job(tmp_path / "bytes", steps=1)
    train_here(bytes_job)
    weights = tmp_path / "bytes" / "run" / "checkpoint" / "step-1"
    words_job = hf_job(tmp_path / "words", eos="<|other|>")
    message = refuse(words_job, "--checkpoint.initial_load_path", str(weights), "--model.vocab_size", "512")
    assert "tokenizer says eos is 1, checkpoint says 0" in message
    assert str(weights) in message
    assert not (tmp_path / "words" / "run").exists()


def edit_manifests(folder: Path, **changes: Any) -> None:
    """Make every shard in `folder` say something else."""
    for path in folder.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_token_shards_with_another_pad_are_refused(tmp_path: Path, refuse: Refusal) -> None:
    config = write_mixture(tmp_path)
    edit_manifests(tmp_path / "shards", pad_id=2)
    message = refuse(config)
    assert "tokenizer says pad is 1, token shards shards says 2" in message
    assert str(tmp_path / "shards" / "part-0.json") in message


def test_token_shards_of_another_tokenizer_are_refused_though_its_eos_is_the_same(tmp_path: Path, refuse: Refusal) -> None:
    config = write_mixture(tmp_path)
    edit_manifests(tmp_path / "shards", tokenizer={"kind": "hf", "fingerprint": "other", "where": "x/tokenizer.json"})
    message = refuse(config)
    assert "token shards shards: the ids are of a tokenizer with fingerprint other, that of [tokenizer] is byte" in message


def test_equal_shards_are_one_party_and_different_ones_are_several(tmp_path: Path, refuse: Refusal) -> None:
    config = write_mixture(tmp_path)
    write_shards(tmp_path / "shards", shards=12)
    path = tmp_path / "shards" / "part-7.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_id": 2}))
    lines = [line for line in refuse(config).splitlines() if line.startswith("token shards shards ")]
    assert [line.split(" | ")[1].strip() for line in lines] == [str(tmp_path / "shards" / "part-0.json"), str(path)]


def test_an_eos_outside_the_embedding_is_refused(job: Path, refuse: Refusal) -> None:
    assert "attention mask's eos 600 is outside the embedding, which has 512 rows" in refuse(job, "--model.eos_id", "600")


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused_with_the_number_that_works(job: Path, refuse: Refusal) -> None:
    message = refuse(job, "--model.vocab_size", "256")
    assert "tokenizer has 512 ids, model.vocab_size only 256: raise it to at least 512" in message


def test_rows_whose_documents_are_not_those_that_eos_implies_are_refused(
    job: Path, refuse: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Packer.expand

    def forgets_an_eos(self: Packer, rows: Any, numbers: Any) -> Any:
        planes = original(self, rows, numbers)
        row = planes.tokens[planes.sequence_ids.max(1).argmax()]
        row[(row == self.eos_id).argmax()] = 65
        return planes

    monkeypatch.setattr(Packer, "expand", forgets_an_eos)
    message = refuse(job)
    assert "the packer says document 1, the attention mask's eos 0 implies 0" in message


def test_a_literal_special_token_in_a_document_stays_text_and_trains(tmp_path: Path) -> None:
    config = hf_job(tmp_path)
    (tmp_path / "corpus" / "2.jsonl").write_text('{"text": "pack <|endoftext|> row"}\n' * 50)
    train_here(config)
    assert metrics(config)[-1]["step"] == 4


def test_a_nul_in_a_document_is_refused_with_file_record_and_offset(job: Path, refuse: Refusal) -> None:
    file = job.parent / "corpus" / "1.jsonl"
    lines = file.read_text().splitlines()
    lines[41] = json.dumps({"text": "before\0after"})
    file.write_text("\n".join(lines) + "\n")
    message = refuse(job, "--data.lanes", "1")
    assert f"{file}, record 42, byte {len(chr(10).join(lines[:41])) + 1}: " in message
    assert "NUL" in message


def test_the_byte_tokenizer_states_evo2s_ids() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 1, 512)
    assert tokenizer.encode("ACGTé".encode()).tolist() == [65, 67, 71, 84, 195, 169]


ROLES = ("eos", "pad", "bos", "mask", "unk")


@given(st.fixed_dictionaries({role: st.none() | st.integers(0, 4) for role in ROLES}))
def test_one_id_has_two_roles_only_where_padding_is_the_eos(stated: dict[str, int | None]) -> None:
    eos = None if stated["eos"] is None else (stated["eos"],)
    statements = [Statement(party="model", where="m", vocab=5), Statement(party="p", where="w", **{**stated, "eos": eos})]
    taken = [index for role, index in stated.items() if index is not None and role != "pad"]
    unsafe = len(set(taken)) < len(taken) or stated["pad"] in [index for index in taken if index != stated["eos"]]
    if not unsafe:
        Contract(statements).check()
    else:
        with pytest.raises(EosMismatchError, match=r"p's \w+ and \w+ are both \d: a model cannot tell them apart"):
            Contract(statements).check()


@pytest.mark.parametrize("role", ["bos", "mask", "unk"])
def test_parties_that_state_a_role_must_agree_on_it(role: str) -> None:
    rows = Statement(party="model", where="m", vocab=9)
    here, there = (Statement(party=party, where="w", **{role: index}) for party, index in (("here", 3), ("there", 4)))
    Contract([rows, here, Statement(party="old", where="w")]).check()
    with pytest.raises(EosMismatchError, match=f"here says {role} is 3, there says 4") as caught:
        Contract([rows, here, there]).check()
    assert f"| {role} 3" in str(caught.value)
    with pytest.raises(EosMismatchError, match=f"here's {role} 3 is outside the embedding, which has 3 rows"):
        Contract([Statement(party="model", where="m", vocab=3), here]).check()


@given(
    eos=st.lists(st.integers(0, 3), min_size=2, max_size=5),
    pad=st.lists(st.integers(0, 3), min_size=2, max_size=5),
    rows=st.integers(1, 5),
)
def test_agreement_is_accepted_and_anything_else_is_not(eos: list[int], pad: list[int], rows: int) -> None:
    statements = [Statement(party="model", where="m", vocab=rows)]
    statements += [Statement(party=f"e{i}", where="w", eos=(value,)) for i, value in enumerate(eos)]
    statements += [Statement(party=f"p{i}", where="w", pad=value) for i, value in enumerate(pad)]
    if len(set(eos)) == 1 and len(set(pad)) == 1 and max(eos + pad) < rows:
        Contract(statements).check()
    else:
        with pytest.raises(EosMismatchError) as caught:
            Contract(statements).check()
        assert all(s.party in str(caught.value) for s in statements), "the table lists every party"


def test_ids_of_before_are_known_by_the_file_and_those_of_another_tokenizer_are_not(tmp_path: Path) -> None:
    file = hf_tokenizer(tmp_path) / "tokenizer.json"
    tokenizer = HFTokenizer(str(file))
    of_file = hashlib.sha256(file.read_bytes()).hexdigest()
    job = [Statement.of_tokenizer(tokenizer), Statement(party="model", where="m", vocab=tokenizer.vocab_size)]
    for fingerprint in (of_file, tokenizer.fingerprint):
        Contract([*job, Statement(party="token shards x", where="y", tokenizer=(fingerprint,))]).check()
    with pytest.raises(EosMismatchError, match=f"token shards x: the ids are of a tokenizer with fingerprint {of_file[::-1]}"):
        Contract([*job, Statement(party="token shards x", where="y", tokenizer=(of_file[::-1],))]).check()

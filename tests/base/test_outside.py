"""Text from outside is shown without control characters and kept without credentials."""

from __future__ import annotations

import pickle
import time

import pytest
from cistron.base import UserError, one_line, outside, presentable, printable, public_name, redacted, without_credentials
from cistron.datasets.errors import DataError
from hypothesis import given
from hypothesis import strategies as st

SECRETS = {
    "https://anna:{}@host/a.jsonl": "https://***@host/a.jsonl",
    "https://{}@host/a.jsonl": "https://***@host/a.jsonl",
    "s3://AKIA0:{}@bucket/a": "s3://***@bucket/a",
    "https://anna:p/{}@host:8080/a": "https://***@host:8080/a",
    "https://anna:p#{}@host/a": "https://***@host/a",
    "http://12:80{}@host/a": "http://***@host/a",
    "simplecache::https://anna:{}@host/a": "simplecache::https://***@host/a",
    "https://host/a?id=7&sig={}": "https://host/a?id=7&sig=***",
    "https://host/a?sv=2024&se=2030&sp=r&sig={}&id=7": "https://host/a?sv=***&se=***&sp=***&sig=***&id=7",
    "https://host/a?X-Amz-Date=20&X-Amz-Signature={}": "https://host/a?X-Amz-Date=***&X-Amz-Signature=***",
    "https://host/a?Expires=1&Signature={}&Key-Pair-Id=K": "https://host/a?Expires=***&Signature=***&Key-Pair-Id=***",
    "https://host/a?access_token={}": "https://host/a?access_token=***",
    "https://host/a?key={}": "https://host/a?key=***",
    "https://host/a#token={}": "https://host/a#token=***",
    "Cannot connect to /a?sig={} [refused]": "Cannot connect to /a?sig=*** [refused]",
    "proxy http://anna:{}@10.0.0.1:3128 refused": "proxy http://***@10.0.0.1:3128 refused",
    "headers={{'Authorization': 'Bearer {}'}}": "headers={{'Authorization': 'Bearer ***'}}",
    "{{'key': 'AKIA', 'secret': '{}'}}": "{{'key': 'AKIA', 'secret': '***'}}",
    "AWS_SECRET_ACCESS_KEY={} is set": "AWS_SECRET_ACCESS_KEY=*** is set",
    "401 for hf_aaaaaaaaaaaaaaaaaaaa{} (gated)": "401 for *** (gated)",
}
SAME = [
    "abfs://container@account.dfs.core.windows.net/a",
    "github://org:repo@main/data/a.jsonl",
    "hf://datasets/user/repo@main/a.parquet",
    "https://host:8080/a@v2/b?page=2&tokenizer=x&max_tokens=5",
    "https://host/a?sv=1&se=2",
    "zip://a.csv::https://host/a.zip",
    "http://[::1]:80/a@b",
    "tokenizer.eos_token = 'x', written to a@b:c",
    "/data/hf/token=1/a?b.jsonl",
]


@pytest.mark.parametrize(("text", "right"), SECRETS.items())
def test_a_secret_is_hidden_and_the_rest_stays(text: str, right: str) -> None:
    hidden = redacted(text.format("Tr0ub4dor"))
    assert hidden == right.format()
    assert redacted(hidden) == hidden


@pytest.mark.parametrize("text", SAME)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_renewed_signature_names_the_same_file() -> None:
    names = {public_name(f"https://host/a?id=7&X-Amz-Date={day}&X-Amz-Signature={day}f") for day in ("20260101", "20260102")}
    assert len(names) == 1
    assert public_name("https://host/a?id=7") != public_name("https://host/a?id=8")
    assert public_name("/data/a?sig=1") == "/data/a?sig=1", "a local path is its own name"


def test_a_configuration_is_kept_without_credentials() -> None:
    config = {"sources": [{"files": ["https://a:b@c/d", "/e?sig=f"], "weight": 1.0}], "steps": 3}
    assert without_credentials(config) == {"sources": [{"files": ["https://***@c/d", "/e?sig=f"], "weight": 1.0}], "steps": 3}


def test_the_value_of_a_secret_variable_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    monkeypatch.setenv("MY_PASSWORD", "short")
    outside.secret_values.cache_clear()
    try:
        assert presentable("tried correct-horse, short") == "tried ***, short"
    finally:
        outside.secret_values.cache_clear()


@given(st.text(alphabet=st.characters()))
def test_no_control_character_is_left(text: str) -> None:
    for shown in (printable(text), one_line(text), presentable(text), str(UserError(text))):
        assert not outside.CONTROLS.search(shown)
        shown.encode()  # no lone surrogate
    assert not set("\n\t") & set(one_line(text))


@given(st.text(alphabet="ab:/@?&=#;.%-_ hsigtoken\n"))
def test_hiding_twice_changes_nothing_more(text: str) -> None:
    once = redacted("https://" + text)
    assert redacted(once) == once


def test_escapes_are_shown_as_text() -> None:
    assert printable("a\x1b]0;t\x07\x9b1m\r\x00\u202e\udc80\tb\n") == "a\\x1b]0;t\\x07\\x9b1m\\r\\x00\\u202e\\udc80\tb\n"
    assert printable("Ünïcode 漢字 🧬‍ क्‍ष") == "Ünïcode 漢字 🧬‍ क्‍ष"
    assert one_line("a\n\tb") == "a\\n\\tb"


def test_an_error_holds_neither_controls_nor_credentials_nor_lines_of_others() -> None:
    error = DataError("was \x1b[2J", file="https://anna:secret@host/a\nall checks passed", record="r\x1b\n")
    assert str(error) == "https://***@host/a\\nall checks passed, record r\\x1b\\n: was \\x1b[2J"
    assert error.file.startswith("https://anna:secret@"), "the program itself can still open it"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.file) == (str(error), error.file)


@pytest.mark.parametrize("unit", ["a://b:c", "http://", "A-", "eyJ-", "?a=b&"])
def test_a_long_hostile_text_costs_time_that_grows_with_its_length(unit: str) -> None:
    def seconds(size: int) -> float:
        begun = time.process_time()
        presentable(unit * (size // len(unit)) + "://")
        return time.process_time() - begun

    assert seconds(80_000) < 8 * seconds(20_000) + 0.05  # 4 where it is linear, 16 where it grows with the square

"""JSON and TOML under limits: what is beyond them is one error that names the file, and costs no time or memory."""

import os
import time
from pathlib import Path

import pytest
from cistron.base import UserError, json_object, json_of, json_record, read_bytes, read_json, read_toml
from cistron.datasets.errors import DataError
from pydantic import BaseModel, ConfigDict


class Oops(UserError):
    pass


class Numbers(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    step: int
    sizes: tuple[int, ...] = ()


JSON = {
    b"": "is empty (0 bytes)",
    b"\xff{}": "is not UTF-8: byte 0 is 0xff",
    b"\xef\xbb\xbf{}": "byte order mark",
    '{"a": 1}'.encode("utf-16-le"): "not valid JSON",
    b"{": "not valid JSON",
    b"[" * 100_000: "nested more than 64 deep",
    b'{"a":' * 80 + b"1" + b"}" * 80: "nested more than 64 deep",
    b'{"a": ' + b"9" * 50_000 + b"}": "an integer of 50000 digits, 99999999999999999999...; at most 100 are read",
    b'{"a": -' + b"9" * 120 + b"}": "an integer of 121 digits",
    b'{"a": NaN}': "the number NaN; numbers must be finite",
    b'{"a": [-Infinity]}': "the number -Infinity",
    b'{"a": 1e999}': "the number 1e999",
    b'{"a": {"b": 1, "c": 2, "b": 3}}': "the key 'b' twice in one object",
    b'{"a": "\\ud800"}': "half a surrogate pair",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 17\n": "run `git lfs pull`",
}


@pytest.mark.parametrize(("text", "problem"), JSON.items(), ids=JSON.values())
def test_json_beyond_the_limits_is_one_error_of_the_callers_kind(text: bytes, problem: str) -> None:
    began = time.monotonic()
    with pytest.raises(Oops) as caught:
        json_of(text, "state.json", Oops)
    assert str(caught.value).startswith("state.json: ")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - began < 2


def test_json_within_the_limits_is_what_it_says() -> None:
    assert json_of(b'{"a": [1, 2.5, "\\ud83d\\ude00", null, true]}', "x", Oops) == {"a": [1, 2.5, "😀", None, True]}
    assert json_of(b"[" * 60 + b"]" * 60, "x", Oops)
    assert json_of(b"1000000000000000019884624838656", "x", Oops) == 1000000000000000019884624838656  # tokenizers write it
    assert json_of(b"[NaN, 1e999]", "x", Oops, finite=False)[1] == float("inf")


def test_json_of_another_kind_than_an_object_is_named() -> None:
    for text, kind in {
        b"[]": "a list",
        b"3": "a number",
        b"null": "null",
        b'"a"': "a string",
        b"true": "true or false",
    }.items():
        with pytest.raises(Oops, match=f"x.json: holds {kind}, not a JSON object"):
            json_object(text, "x.json", Oops)


def test_a_record_names_each_key_that_is_wrong() -> None:
    assert json_record(Numbers, b'{"step": 3, "sizes": [1, 2]}', "x", Oops) == Numbers(step=3, sizes=(1, 2))
    with pytest.raises(Oops, match=r"^x: step = 3\.5: .*; sizes\.1 = '2': .*; more = 1: "):
        json_record(Numbers, b'{"step": 3.5, "sizes": [1, "2"], "more": 1}', "x", Oops)
    with pytest.raises(Oops, match=r"and 2 more$"):
        json_record(Numbers, b'{"step": 1, "a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1}', "x", Oops)
    with pytest.raises(Oops, match="twice"):  # pydantic would take the last one
        json_record(Numbers, b'{"step": 1, "step": 2}', "x", Oops)


def test_only_a_file_is_read(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    wrong = {
        "/dev/zero": "a device, where a file is read",
        str(pipe): "a pipe, where a file is read",
        str(tmp_path): "a folder, where a file is read",
        str(tmp_path / "none"): "cannot be read: No such file",
        str(loop): "cannot be read: Too many levels of symbolic links",
        "a\0b": "cannot be read: embedded null byte",
        "n" * 5000: "cannot be read: File name too long",
    }
    for path, problem in wrong.items():
        with pytest.raises(Oops) as caught:
            read_bytes(path, Oops)
        assert problem in str(caught.value), path


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    file.write_bytes(b'{"a": 1}')
    assert read_json(file, Oops, most=8) == {"a": 1}
    with pytest.raises(Oops, match="more than the 7 bytes"):
        read_json(file, Oops, most=7)
    with file.open("wb") as sparse:
        sparse.truncate(2**40)  # nothing of which is read
    with pytest.raises(Oops, match="more than the 67,108,864 bytes"):
        read_json(file, Oops)


TOML = {
    "a = " + "[" * 5000: "nested more than 64 deep",
    "[" + ".".join("a" * 5000) + "]": "a key of more than 64 parts",
    ".".join(["'b'"] * 200_000) + " = 1": "a key of more than 64 parts",
    "a = " + "{b = " * 100 + "1" + "}" * 100: "nested more than 64 deep",
    "a = 0x" + "f" * 50_000: "an integer of more than 100 digits",
    "a = " + "9" * 50_000: "not valid TOML",
    "a = 1\na = 2": "not valid TOML",
    "a = 2026-13-45": "not valid TOML",
    'a = "\\ud800"': "not valid TOML",
    "#" * 2**20 + "\n": "more than the 1,048,576 bytes",
}


@pytest.mark.parametrize(("text", "problem"), TOML.items(), ids=TOML.values())
def test_toml_beyond_the_limits_is_one_error(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    began = time.monotonic()
    with pytest.raises(Oops) as caught:
        read_toml(tmp_path / "job.toml", Oops)
    assert str(caught.value).startswith(f"{tmp_path}/job.toml: ")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.monotonic() - began < 2


def test_dots_and_brackets_in_strings_and_comments_of_a_toml_are_text(tmp_path: Path) -> None:
    dots, brackets = "." * 100, "[" * 100
    text = f"# {dots}{brackets}\na = \"{dots}{brackets}\"\nb = '{dots}'\nc = '''\n{dots}{brackets}'''\nd = [{'1.5, ' * 100}]\n"
    (tmp_path / "job.toml").write_text(text)
    assert read_toml(tmp_path / "job.toml", Oops)["a"] == dots + brackets
    (tmp_path / "job.toml").write_text("")
    assert read_toml(tmp_path / "job.toml", Oops) == {}


def test_an_error_about_data_keeps_its_file() -> None:
    with pytest.raises(DataError) as caught:
        json_of(b"{", "shard.json", DataError)
    assert caught.value.file == "shard.json"

"""Files of records: damage costs the line that it is in, and a resume reads the end alone."""

import json
import resource
import time
from pathlib import Path

import pytest
from cistron.trainer.metrics import records
from cistron.trainer.metrics.records import append_record, forget_after, last_record


def line(step: int) -> bytes:
    return json.dumps({"step": step, "loss": step / 7, "grad_norm": None}).encode() + b"\n"


def steps(file: Path) -> list[int]:
    return [json.loads(text)["step"] for text in file.read_bytes().splitlines()]


DAMAGE = {
    "NULs": b"\0" * 300 + b"\n",
    "NULs before a record's end": b"\0" * 300 + line(6)[20:],
    "letters that are no UTF-8": b'{"step": 6, "loss": \xff\xfe}\n',
    "half a line": line(6)[:11] + b"\n",
    "no record": b"[6]\n",
    "no step": b'{"loss": 1.0}\n',
    "no number of a step": b'{"step": true}\n',
    "before the first step": b'{"step": -3}\n',
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("place", [0, 5, 9])
def test_a_damaged_line_alone_is_set_aside(tmp_path: Path, damage: bytes, place: int) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [line(step) for step in range(1, 10)]
    file.write_bytes(b"".join([*lines[:place], damage, *lines[place:]]))
    (said,) = forget_after(file, 8)
    assert steps(file) == [*range(1, 9)]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damage
    assert str(file) in said
    assert f"1 damaged line(s), at byte {sum(map(len, lines[:place]))}, are in metrics.jsonl.damaged" in said
    assert not forget_after(file, 8)
    append_record(file, {"step": 9})
    assert steps(file) == [*range(1, 10)]


def test_what_was_damaged_twice_is_kept_twice(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for text in (b"one", b"two"):
        file.write_bytes(line(1) + text)
        assert forget_after(file, 1)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"one\ntwo\n"


def test_a_whole_record_that_lacks_its_line_break_stays(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line(1) + line(2)[:-1])
    assert not forget_after(file, 2)
    append_record(file, {"step": 3})
    assert steps(file) == [1, 2, 3]


def test_a_record_stands_on_a_line_of_its_own_behind_half_a_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line(1) + b'{"step": 2, "lo')
    append_record(file, {"step": 3})
    assert forget_after(file, 3)
    assert steps(file) == [1, 3]


@pytest.mark.parametrize("step", [1, 399, 400, 500])
def test_records_of_later_steps_go_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(records, "END_BYTES", 200)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join(line(step) for step in range(1, 401)))  # with empty lines between them
    assert not forget_after(file, step)
    assert [line_.step for line_ in records.lines_from(file, 0)] == [*range(1, min(step, 400) + 1)]
    assert last_record(file)["step"] == min(step, 400)


def test_a_file_of_later_records_alone_becomes_empty_and_one_from_the_start_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    assert not forget_after(file, 3)
    file.write_bytes(line(5) + line(6))
    assert not forget_after(file, 3)
    assert file.read_bytes() == b""
    assert last_record(file) == last_record(tmp_path / "none") == {}
    file.write_bytes(line(5))
    forget_after(file, 0)
    assert (tmp_path / "validation.jsonl.aside").read_bytes() == line(5)


def test_the_last_record_is_that_before_a_damaged_end(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line(1) + line(2) + b"\0\0\0")
    assert last_record(file) == json.loads(line(2))


def test_a_resume_reads_the_end_of_a_long_file_alone(tmp_path: Path) -> None:
    """100 MB: to read all of it took 1 s and 290 MB."""
    file = tmp_path / "metrics.jsonl"
    with file.open("wb") as opened:
        opened.truncate(100_000_000)  # a hole, whose zeros would be damage
        opened.seek(0, 2)
        opened.write(b"\n" + b"".join(line(step) for step in range(100_000)))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert not forget_after(file, 99_000)
    assert last_record(file)["step"] == 99_000
    assert time.process_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"

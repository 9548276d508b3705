"""Where a command writes is looked at before its work: a folder, a device or a full disk is refused at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cistron.datasets.files import atomic, check_writable, check_writable_folder
from cistron.tests.helpers.corpora import write_jsonl
from cistron.tools import check as check_command
from cistron.tools import embed, evaluate, generate, inspect, prepare
from cistron.tools.doctor import command as doctor
from cistron.tools.export import main as export
from cistron.tools.extrapolate import main as extrapolate
from cistron.trainer.errors import ConfigError


def no_space(path: Path, *_: object) -> None:
    raise OSError(28, os.strerror(28), str(path))


def test_an_output_that_is_no_file_or_has_no_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("kept")
    for path, problem in {
        tmp_path: "this is a folder; name a file",
        Path("/dev/full"): "this is a device; name a file",
        tmp_path / "pipe": "this is a pipe; name a file",
        tmp_path / "no" / "file": "No such file or directory",
        tmp_path / "file" / "below": "Not a directory",
        tmp_path / ("n" * 300): "File name too long",
    }.items():
        with pytest.raises(ConfigError, match=f"--report .*: cannot be written: .*{problem}"):
            check_writable(path, "--report", ConfigError)
    check_writable(tmp_path / "file", "--report", ConfigError)
    check_writable_folder(tmp_path / "new" / "folder", "--output", ConfigError)
    probed: list[Path] = []
    with monkeypatch.context() as here:  # the folder above is nobody's to write to
        here.chdir(tmp_path)
        here.setattr(atomic, "_probe", probed.append)
        check_writable_folder(Path(), "--output", ConfigError)
    assert [path.parent for path in probed] == [tmp_path]
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        check_writable_folder(tmp_path / "file" / "below", "--output", ConfigError)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "file"}
    assert (tmp_path / "file").read_text() == "kept"
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ConfigError, match="No space left on device"):
        check_writable(tmp_path / "file", "--report", ConfigError)
    with pytest.raises(ConfigError, match="No space left on device"):
        check_writable_folder(tmp_path / "new", "--output", ConfigError)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "file"}


def commands(folder: Path) -> dict[str, Callable[[], object]]:
    """Every command that writes where it is told, with a folder in place of a file, or a file of a folder."""
    corpus = write_jsonl(folder / "a.jsonl", ["some text"])
    for name in ("x.tsv", "x.png", "x.html", "x.json"):
        (folder / name).mkdir()
    (folder / "file").write_text("")
    raw = ["--format", "jsonl", "--tokenizer", "byte", corpus, "--processes", "1"]
    # A model that is not there: whoever looks for it first, names it instead of the output.
    return {
        "--report": lambda: prepare.main([*raw, "--output", str(folder / "out"), "--report", str(folder / "x.html")]),
        "--output": lambda: prepare.main([*raw, "--output", str(folder / "file" / "out")]),
        "evaluate --output": lambda: evaluate.main(["nowhere", "--score", corpus, "--output", str(folder / "x.tsv")]),
        "extrapolate --output": lambda: extrapolate(["nowhere", "--extrapolate", "--output", str(folder / "file" / "out")]),
        "embed --output": lambda: embed.main(
            ["nowhere", "--input", corpus, "--layer", "norm", "--output", str(folder / "file" / "e.parquet")]
        ),
        "inspect --output": lambda: inspect.main(["debug", "--output", str(folder / "x.png")]),
        "doctor --json": lambda: doctor.doctor([], ["versions"], folder / "x.json", 10.0),
        "export OUT": lambda: export(["nowhere", str(folder / "file" / "out")]),
    }


NAMES = ("--report", "--output", *(f"{command} --output" for command in ("evaluate", "extrapolate", "embed", "inspect")))


@pytest.mark.parametrize("name", [*NAMES, "doctor --json", "export OUT"])
def test_every_command_refuses_its_output_before_its_work(tmp_path: Path, name: str) -> None:
    before = commands(tmp_path)
    with pytest.raises(ConfigError) as caught:
        before[name]()
    assert f"{name.split()[-1]} {tmp_path}" in str(caught.value)
    assert "cannot be written" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (generate.main, ["x", "--prompt", "a", "--samples", "1" + "0" * 12]),
        (generate.main, ["x", "--prompt", "a", "--seed", "9" * 50_000]),
        (inspect.main, ["debug", "--rows", "1" + "0" * 12]),
        (check_command.main, ["debug", "--world-size", "1" + "0" * 15]),
        (doctor.main, ["--part-seconds", "nan"]),
        (doctor.main, ["--part-seconds", "1e15"]),
    ],
)
def test_numbers_on_a_command_line_have_limits(main: Callable[[list[str]], object], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2

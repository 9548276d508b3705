"""The plug-in of docs/extending.md, taken from the page: installed from outside the package, and by `job.plugins`."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cistron.tests.helpers.ranks import Command

ROOT = Path(__file__).resolve().parents[1]
FILE = re.compile(r"^### `([^`]+)`\n\n((?:    .*\n|\n)+)", re.MULTILINE)
MODULES = {f"cistron_extras/{name}.py" for name in ("__init__", "reader", "tokenizer", "preset", "sink")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, and essays to read."""
    folder = tmp_path_factory.mktemp("extras")
    page = (ROOT / "docs" / "extending.md").read_text()
    found = {name: textwrap.dedent(text).strip() + "\n" for name, text in FILE.findall(page)}
    assert found.keys() == {*MODULES, "pyproject.toml", "job.toml"}
    essays = {f"essays/{number}.paragraphs": "Pack ROWS\n\n\n" + "of eos\nlines\n\n" * 200 for number in range(2)}
    for name, text in {**found, **essays}.items():
        file = folder / ("plugin" if name in MODULES or name == "pyproject.toml" else "work") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def run(folder: Path, modules: Path, module: str, *arguments: str, status: int = 0) -> str:
    """Run a module of this package with plug-ins from a folder; returns what it printed."""
    running = Command(main_of, [str(modules), str(folder / "work"), module, *arguments])
    output, _ = running.communicate(timeout=300)
    assert running.returncode == status, output
    return output


def main_of(argv: list[str]) -> None:
    """Run a module's `main` where plug-ins are found in one folder, and paths begin in another."""
    modules, folder, module, *arguments = argv
    sys.path.insert(0, modules)
    os.chdir(folder)
    importlib.import_module(module).main(arguments)


def losses(folder: Path, run: str) -> list[tuple[int, float]]:
    """Steps and losses as the plug-in's sink wrote them."""
    rows = (line.split("\t") for line in (folder / "work" / run / "losses.tsv").read_text().splitlines())
    return [(int(step), float(loss)) for step, loss in rows]


def test_a_plug_in_is_installed_from_outside_and_trains(folder: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(tmp_path), str(folder / "plugin")], check=True, capture_output=True)
    assert (tmp_path / "cistron_extras" / "reader.py").is_file()
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "cistron.trainer.train", "--config", "job.toml"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder / "work", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout
    installed = losses(folder, "outputs/extras")
    assert [step for step, _ in installed] == [1, 2, 3]

    # the same names on the command line of a tool that reads no TOML
    flags = ["--format", "paragraphs", "--tokenizer", "lowercase", "--output", str(tmp_path / "out"), "--processes", "1"]
    run(folder, tmp_path, "cistron.tools.prepare", "essays/*.paragraphs", *flags)
    assert b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*.ids")).startswith(b"pack rows\0of eos\n")

    # from the folder itself, which no package manager knows, by the TOML; read and encoded by worker processes
    named = ["--config", "job.toml", "--job.plugins", '["cistron_extras"]', "--job.dump_folder", "outputs/named"]
    run(folder, folder / "plugin", "cistron.trainer.train", *named, "--data.num_workers", "2")
    assert losses(folder, "outputs/named") == installed
    run(folder, folder / "plugin", "cistron.trainer.train", *named, "--training.steps", "4")
    assert [step for step, _ in losses(folder, "outputs/named")] == [1, 2, 3, 4], "resumed at a paragraph's address"


def test_worker_processes_of_prepare_read_and_encode_by_a_plug_in(folder: Path, tmp_path: Path) -> None:
    job = (folder / "work" / "job.toml").read_text().replace("[job]", '[job]\nplugins = ["cistron_extras"]')
    (tmp_path / "job.toml").write_text(job)
    arguments = ["--config", str(tmp_path / "job.toml"), "--output", str(tmp_path / "out"), "--processes", "2"]
    run(folder, folder / "plugin", "cistron.tools.prepare", *arguments)
    ids = [path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.ids"))]
    assert b"".join(ids) == (b"pack rows\0" + b"of eos\nlines\0" * 200) * 2


def test_a_part_of_no_plug_in_is_refused_with_those_that_there_are(folder: Path) -> None:
    wrong = ["--config", "job.toml", "--job.plugins", '["cistron_extra"]']
    said = run(folder, folder, "cistron.trainer.train", *wrong, status=2)
    assert "job.plugins: 'cistron_extra': cannot be imported" in said
    assert "Traceback" not in said


def test_every_file_of_a_part_has_about_a_dozen_lines(folder: Path) -> None:
    for name in MODULES:
        code = [line for line in (folder / "plugin" / name).read_text().splitlines() if line.strip()]
        assert len(code) <= 16, name

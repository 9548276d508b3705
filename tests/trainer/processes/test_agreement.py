"""Ranks that do not run the same job are refused before anything is built, with a table of who has what."""

import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from cistron.base import Table
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.models.config import PRESETS
from cistron.tests.helpers.jobs import brief_sample, column, metrics, write_job
from cistron.tests.helpers.ranks import Command, run_on_ranks
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.errors import RanksDifferError
from cistron.trainer.processes import Layout, agree, join
from cistron.trainer.processes.agreement import MAY_DIFFER, differences, digest_of, hosts_of, in_words
from cistron.trainer.start import host_facts, verify
from cistron.trainer.train import main

AGREEMENT = sys.modules["cistron.trainer.processes.agreement"]
HOST = socket.gethostname()
# of rank 1: options as on a command line, what is faked, and the row of the table
DIFFERENT: dict[str, tuple[str, str, list[str]]] = {
    "lr": ("--optimizer.lr 2e-2", "", ["optimizer.lr", "0.01", "0.02"]),
    "max_norm": ("--training.max_norm 0.5", "", ["training.max_norm", "1.0", "0.5"]),
    "weight_decay": ("--optimizer.weight_decay 0.2", "", ["optimizer.weight_decay", "0.1", "0.2"]),
    "seq_len": ("--training.seq_len 128", "", ["training.seq_len", "64", "128"]),
    "seed": ("--training.seed 1", "", ["training.seed", "0", "1"]),
    "packing": ("--data.packing concat", "", ["data.packing", '"best_fit"', '"concat"']),
    "steps": ("--training.steps 3", "", ["training.steps", "2", "3"]),
    "interval": ("--checkpoint.interval 1", "", ["checkpoint.interval", "4", "1"]),
    "local_batch_size": ("--training.local_batch_size 2", "", ["training.local_batch_size", "4", "2"]),
    "n_layers": ("--model.n_layers 3", "", ["model.n_layers", "2", "3"]),
    "layout": ("--parallelism.tensor_parallel_degree 2", "", ["parallelism.tensor_parallel_degree", "1", "2"]),
    "timeout": ("--comm.timeout_seconds 60", "", ["comm.timeout_seconds", "600", "60"]),
    "preset": ("", "preset", ["model.norm_eps", "1e-05", "1e-06"]),
    "an option less": ("--model.rope.theta 10000", "", ["model.rope: keys that are set", "", "theta"]),
    "cistron": ("", "cistron", ["cistron", "0.1.0, sources", "9.9.9, sources"]),
    "torch": ("", "torch", ["torch", torch.__version__, "9.9.9"]),
    "numpy": ("", "numpy", ["numpy", "", "9.9.9"]),
    "Python": ("", "Python", ["Python", ".".join(map(str, sys.version_info[:2])), "9.9"]),
    "tokenizer": ("", "tokenizer", ["tokenizer (fingerprint)", "byte", "other"]),
    "environment": ("", "environment", ["$NVIDIA_TF32_OVERRIDE", "-", "1"]),
}


def pretend(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something else be installed or set on this rank; "": nothing."""
    if kind == "cistron":
        monkeypatch.setattr(sys.modules["cistron"], "__version__", "9.9.9")
    if kind == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9.9")
    if kind == "numpy":
        installed = AGREEMENT.installed
        monkeypatch.setattr(AGREEMENT, "installed", lambda name: "9.9.9" if name == "numpy" else installed(name))
    if kind == "Python":
        monkeypatch.setattr("platform.python_version_tuple", lambda: ("9", "9", "1"))
    if kind == "preset":
        monkeypatch.setitem(PRESETS._parts, "debug", PRESETS["debug"].replace(norm_eps=1e-6))
    if kind == "tokenizer":
        monkeypatch.setattr(ByteTokenizer, "fingerprint", "other")
    if kind == "environment":
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")


def refusals(job: str, plugins: list[str]) -> dict[str, str]:
    """On each of two ranks: what joining says where rank 1 differs, for each case."""
    said = {}
    for name, (options, faked, _) in DIFFERENT.items():
        mine = dist.get_rank() == 1
        with pytest.MonkeyPatch.context() as patches:
            pretend(faked if mine else "", patches)
            said[name] = refusal(["--config", job, *(options.split() if mine else [])])
    sys.path.insert(0, plugins[dist.get_rank()])
    said["plug-in"] = refusal(["--config", job, "--job.plugins", '["cistron_differs"]'])
    return said


def refusal(argv: list[str]) -> str:
    """What joining says to a job."""
    config, _ = load_config(argv)
    parts = verify(config, Layout.resolve(config, 2))
    try:
        join(config, further=lambda: host_facts(config, parts))
    except RanksDifferError as error:
        return str(error)
    return "no refusal"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of two steps."""
    return write_job(tmp_path_factory.mktemp("agreement"), steps=2)


@pytest.fixture(scope="module")
def said(job: Path) -> list[dict[str, str]]:
    """What two ranks say to each case."""
    plugins = [job.parent / "a", job.parent / "b"]
    for folder in plugins:
        folder.mkdir()
        (folder / "cistron_differs.py").write_text(f"NAME = {folder.name!r}\n")
    return run_on_ranks(refusals, 2, str(job), [str(folder) for folder in plugins])


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_rank_that_differs_is_told_in_a_table(case: str, said: list[dict[str, str]]) -> None:
    first, second = (of_rank[case] for of_rank in said)
    assert first == second
    table = [[cell.strip() for cell in line.split("|")] for line in first.split("\n\n")[1].splitlines()]
    assert table[0] == ["", f"rank 0 ({HOST})", f"rank 1 ({HOST})"]
    key, *values = DIFFERENT[case][2]
    (row,) = [row for row in table if row[0] == key]
    assert all(cell.startswith(value) for cell, value in zip(row[1:], values, strict=True))
    assert row[1] != row[2]
    assert len(table) == 2, "other keys differ too"


def test_other_sources_of_a_plug_in_are_told(said: list[dict[str, str]]) -> None:
    assert re.search(r"^plug-in cistron_differs \| sources \w{12} +\| sources \w{12}$", said[0]["plug-in"], re.MULTILINE)


def test_sources_are_the_same_at_another_place_and_not_with_another_letter(tmp_path: Path) -> None:
    digests = []
    for place, text in (("a", "X = 1"), ("b", "X = 1"), ("c", "X = 2")):
        (tmp_path / place / "plugin" / "part").mkdir(parents=True)
        for file in ("one.py", "plugin/__init__.py", "plugin/part/two.py"):
            (tmp_path / place / file).write_text(text if file != "plugin/__init__.py" else "")
        digests.append([digest_of(tmp_path / place / name) for name in ("one.py", "plugin")])
    first, same, other = digests
    assert first == same
    assert not set(first) & set(other)


def test_what_an_editor_or_an_environment_leaves_is_no_source_and_what_cannot_be_read_counts(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("X = 1")
    before = digest_of(tmp_path)
    (tmp_path / ".#one.py").symlink_to("nobody@nowhere.1")
    for folder in (".git", "__pycache__", "node_modules/a", "venv/lib"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "other.py").write_text("")
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    assert digest_of(tmp_path) == before
    (tmp_path / "gone.py").symlink_to("nowhere")
    assert digest_of(tmp_path) != before
    assert digest_of(tmp_path / "gone.py") == digest_of(tmp_path / "gone.py")


def test_a_pipe_called_like_a_source_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("X = 1")
    before = digest_of(tmp_path)
    os.mkfifo(tmp_path / "two.py")
    assert digest_of(tmp_path) == digest_of(tmp_path) != before
    assert digest_of(tmp_path / "two.py")


def named(said: dict[int, tuple[str, dict[str, str]]]) -> list[str]:
    """The head of the table of some ranks, without the empty cell."""
    return [cell.strip() for cell in differences(said, ["key"])[0].split("|")][1:]


def test_ranks_are_grouped_by_what_they_have() -> None:
    ranks = {rank: ("a" if rank < 4 else "b", {"key": "old" if rank == 1 else "new"}) for rank in range(8)}
    assert named(ranks) == ["rank 0, 2-7 (a, b)", "rank 1 (a)"]


def test_a_table_stays_small_for_many_ranks_keys_and_letters() -> None:
    ranks = {rank: (f"host{rank}", {"key": f"{rank:02}" + "x" * 500, "same": "1"}) for rank in range(64)}
    lines = differences(ranks, ["key", "same"])
    assert lines[-1] == "and 58 more kinds of ranks"
    assert max(map(len, lines)) < 600
    assert hosts_of(ranks, list(range(64))) == "host0 and 63 other hosts"
    assert in_words([0, 2, 3, 4, 7]) == "0, 2-4, 7"


def disagree() -> str:
    """On rank 1, files are missing, of other contents and more: far more than a table shows."""
    files = {f"part-{number:04}": "same" for number in range(1000)}
    if dist.get_rank() == 1:
        files |= {f"part-{number:04}": "other" for number in range(500)} | {"part-9999": "new"}
        del files["part-0007"]
    try:
        agree("the files differ", files, "copy them")
    except RanksDifferError as error:
        return str(error)
    return ""


def test_many_differences_are_counted() -> None:
    first, second, third = run_on_ranks(disagree, 3)
    assert first == second == third
    lines = first.splitlines()
    assert lines[0] == "the files differ:"
    assert lines[-1] == "copy them"
    assert [cell.strip() for cell in lines[2].split("|")] == ["", f"rank 0, 2 ({HOST})", f"rank 1 ({HOST})"]
    assert [cell.strip() for cell in lines[10].split("|")] == ["part-0007", "same", "-"]
    assert "and 481 more" in lines


def rank_main(argv: list[str]) -> None:
    """Run the trainer as a rank that no torchrun started."""
    rank, ranks, port, *arguments = argv
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with brief_sample():
        main(arguments)


def launch(job: Path, *ranks: tuple[int, str]) -> list[tuple[int | None, str]]:
    """Run a job on ranks with a WORLD_SIZE and options of their own; returns status and output of each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    argv = [[str(rank), str(size), port, "--config", str(job), *more.split()] for rank, (size, more) in enumerate(ranks)]
    running = [Command(rank_main, words) for words in argv]
    outputs = [command.communicate(timeout=240)[0] for command in running]
    return [(command.returncode, output) for command, output in zip(running, outputs, strict=True)]


def test_ranks_that_differ_end_with_status_2_and_nothing_is_written(job: Path) -> None:
    folder = job.parent / "refused"
    common = f"--job.dump_folder {folder}"
    (first, said), (second, also) = launch(job, (2, common), (2, f"{common} --optimizer.lr 2e-2"))
    assert first == second == 2
    assert said.startswith("error: the ranks do not run the same job:\n")
    assert also == f"[rank 1] {said}"  # in vain for three seconds it has left the word to rank 0
    assert not folder.exists()


def test_another_world_size_ends_both_sides(job: Path) -> None:
    begun = time.monotonic()
    fits = "--data.lanes 12 --training.global_batch_size 12 --training.local_batch_size 2"
    for status, said in launch(job, (2, fits), (3, fits)):
        assert status == 2
        assert re.search(r"^WORLD_SIZE +\| 2 +\| 3", said, re.MULTILINE)
    assert time.monotonic() - begun < 120  # of comm.timeout_seconds = 600


def test_what_may_differ_changes_no_row(job: Path) -> None:
    copy = job.parent / "copy"
    shutil.copytree(job.parent / "corpus", copy / "corpus")
    text = job.read_text().replace(f"{job.parent}/corpus", f"{copy}/corpus")
    other = copy / "job.toml"
    other.write_text(text)
    more = "--data.num_workers 1 --data.retries 1 --metrics.enable_tensorboard true --profiling.enable_profiling true"
    losses = []
    for name, options in (("same", ""), ("other", f"--config {other} {more}")):
        folder = f"--job.dump_folder {job.parent / name} --checkpoint.enable false"
        ends = launch(job, (2, folder), (2, f"{folder} {options}"))
        assert [status for status, _ in ends] == [0, 0], ends
        records = metrics(job, name)
        losses.append((column(records, "loss"), column(records, "rows_hash")))
    assert losses[0] == losses[1]


def option_keys(table: type[Table], key: str = "") -> Iterator[str]:
    """The TOML keys of a table and of those within; `*` stands for the number of a table in a list."""
    for name, field in table.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        tables = [kind for kind in inner if issubclass(kind, Table)]
        place = f"{key}.{name}".lstrip(".") + (".*" if tables and tables[0] is not field.annotation else "")
        yield from option_keys(tables[0], place) if tables else [place]


def option_rows() -> list[str]:
    """The table of docs/scaling.md: by reason what may differ, then by TOML table what may not."""
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for key in sorted(option_keys(JobConfig), key=lambda key: key not in MAY_DIFFER):
        table, _, name = key.rpartition(".")
        head = f"`[[{table[:-2]}]]`" if table.endswith(".*") else f"`[{table}]`" if table else ""
        verdict = f"yes: {MAY_DIFFER[key]}" if key in MAY_DIFFER else "no"
        rows.setdefault(("" if key in MAY_DIFFER else table, verdict), {}).setdefault(head, []).append(f"`{name}`")
    return [
        "; ".join(f"{head} {', '.join(names)}".strip() for head, names in tables.items()).join(["| ", f" | {verdict} |"])
        for (_, verdict), tables in rows.items()
    ]


def test_the_page_says_of_every_option_whether_it_may_differ() -> None:
    assert set(MAY_DIFFER) <= set(option_keys(JobConfig))
    page = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text()
    table = page.partition("| option | may differ between ranks |\n|---|---|\n")[2].partition("\n\n")[0]
    assert table == "\n".join(option_rows())

"""What a run keeps holds no credentials, and another signature resumes it; a checkpoint of others runs nothing."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cistron.base import UserError
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.tests.datasets.files.test_remote import Server
from cistron.tests.helpers.jobs import forge, metrics, train_here, write_job
from cistron.tools import prepare as prepare_tool
from cistron.trainer.checkpoints import Folder, read_newest
from cistron.trainer.config import JobConfig
from cistron.trainer.errors import CheckpointError

SECRET = "5ecret-0f-anna"


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with documents, which asks for nothing."""
    with Server() as server:
        server.files["x.jsonl"] = b"".join(b'{"text": "document %d of a corpus"}\n' % number for number in range(2000))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def named(server: Server, day: int) -> str:
    """Return the URL of the documents, with a password, and the signature of a day."""
    url = server.url(f"x.jsonl?id=7&X-Amz-Date={day}&X-Amz-Signature={SECRET}{day}")
    return url.replace("//", f"//anna:{SECRET}@", 1)


def secrets_in(folder: Path) -> list[str]:
    """Return the files under a folder that hold the secret, in name or content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if SECRET in path.name or SECRET.encode() in path.read_bytes()]


def test_a_run_keeps_no_secret_and_resumes_under_another_signature(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_job(tmp_path)

    def overrides(day: int, steps: int) -> list[str]:
        source = {"name": "remote", "format": "jsonl", "paths": [named(server, day)]}
        return ["--data.sources", json.dumps([source]), "--data.lanes", "1", "--training.steps", str(steps)]

    train_here(config, *overrides(1, 2))
    assert secrets_in(tmp_path / "run") == []
    assert "X-Amz-Signature=***" in (tmp_path / "run" / "config.toml").read_text()
    inventory = next((tmp_path / "run" / "checkpoint").glob("step-2/inventory.json")).read_text()
    assert "//***@127.0.0.1" in inventory
    train_here(config, *overrides(2, 3))
    assert [record["step"] for record in metrics(config)] == [1, 2, 3]
    assert SECRET not in capsys.readouterr().out
    found, _ = read_newest(tmp_path / "run" / "checkpoint")
    [path] = found.state.config.data.sources[0].paths
    with pytest.raises(DataError, match="kept nowhere; name it in full"):
        FileStore().expand([path])


def test_shards_and_reports_hold_no_secret(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(
        work: Callable[[Any, Any], Any], tasks: Iterable[Any], processes: int, on_event: Any
    ) -> Iterator[tuple[Any, Any]]:
        return ((task, work(task, on_event)) for task in tasks)

    monkeypatch.setattr("cistron.datasets.prepare.run.run_tasks", in_this_process)  # starting a worker takes seconds
    output, page = tmp_path / "shards", tmp_path / "page.html"
    options = ("--format", "jsonl", "--tokenizer", "byte", "--output", str(output), "--report", str(page), "--processes", "1")
    for day in (1, 2):  # the second finds everything done
        prepare_tool.main([*options, named(server, day)])
    assert secrets_in(tmp_path) == []
    assert "//***@127.0.0.1" in next((output / "train").glob("*.json")).read_text()
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err


def test_what_a_tracker_is_sent_and_what_is_printed_is_the_same_redacted_configuration(server: Server) -> None:
    sources = [{"name": "remote", "format": "jsonl", "paths": [named(server, 1)]}]
    config = JobConfig.model_validate({"data": {"sources": sources}, "checkpoint": {"folder": f"s3://a:{SECRET}@bucket/run"}})
    assert SECRET not in json.dumps(config.to_dict()) + config.to_toml()
    assert SECRET in str(config.data.sources[0].paths), "the job itself has it"


def test_a_folder_that_was_kept_without_credentials_is_not_taken_for_one() -> None:
    with pytest.raises(CheckpointError, match="name the folder in full"):
        Folder("memory://***@bucket/run")


def test_a_module_that_a_checkpoint_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(write_job(tmp_path), "--training.steps", "1")
    [step] = (tmp_path / "run" / "checkpoint").glob("step-*")
    state = json.loads((step / "state.json").read_text())
    state["config"]["job"]["plugins"] = ["module_of_others"]
    forge(step, "state.json", json.dumps(state).encode())
    ran = tmp_path / "ran"
    (tmp_path / "module_of_others.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"module_of_others.*CISTRON_PLUGINS=module_of_others"):
        read_newest(step)
    assert not ran.exists()
    monkeypatch.setenv("CISTRON_PLUGINS", "module_of_others")
    try:
        read_newest(step)
        assert ran.exists()
    finally:
        sys.modules.pop("module_of_others", None)

"""A checkpoint under a manifest that fits, as anybody can make it: what it states is believed only where it agrees.

Tensors are made of memory that is not initialised, filled piece by piece: pieces that leave a hole would train on, or
publish, whatever lay there before.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count, product
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cistron.datasets.errors import InUseError
from cistron.datasets.files import Lock
from cistron.tests.helpers.jobs import forge, refusal, why_incomplete
from cistron.tools import export
from cistron.trainer.checkpoints import Folder, Spec, read, safetensors_bytes
from cistron.trainer.checkpoints import tiling as tiling_room
from cistron.trainer.checkpoints.find import NEWEST
from cistron.trainer.checkpoints.manifest import INDEX, INVENTORY, MANIFEST, STATE, files_of, manifest_text
from cistron.trainer.checkpoints.tensors import (
    METADATA,
    NAMES,
    FileSet,
    TensorPiece,
    index_text,
    piece_name,
    read_header,
    read_index,
    what_is_wrong,
)
from cistron.trainer.checkpoints.tiling import wrongly_covered
from cistron.trainer.errors import CheckpointError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Box = tuple[tuple[int, ...], tuple[int, ...]]
FOLDERS = count()
TENSORS = sys.modules[FileSet.__module__]


@st.composite
def tilings(draw: st.DrawFn, most: int = 5) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and boxes that tile it: cut in two again and again, in any dimension, in any order."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, most))):
        begin, extent = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        wide = [dim for dim, size in enumerate(extent) if size > 1]
        if not wide:
            boxes.append((begin, extent))
            continue
        dim = draw(st.sampled_from(wide))
        cut = draw(st.integers(1, extent[dim] - 1))
        for place, size in ((begin[dim], cut), (begin[dim] + cut, extent[dim] - cut)):
            boxes.append(((*begin[:dim], place, *begin[dim + 1 :]), (*extent[:dim], size, *extent[dim + 1 :])))
    return shape, draw(st.permutations(boxes))


@given(tilings(most=12), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.integers(-2, 2)), max_size=3))
@settings(max_examples=150, deadline=None)
def test_what_is_wrongly_covered_is_what_counting_elements_finds(
    tiling: tuple[tuple[int, ...], list[Box]], changes: list[tuple[int, int, int]]
) -> None:
    shape, boxes = tiling
    for number, what, by in changes:  # drop one, double one, or change an edge within the shape
        begin, extent = boxes[number % len(boxes)] if boxes else ((0,) * len(shape), shape)
        if what == 0 and boxes:
            del boxes[number % len(boxes)]
        elif what == 1:
            boxes.append((begin, extent))
        elif shape:
            dim = number % len(shape)
            at = min(max(begin[dim] + by, 0), shape[dim])
            size = min(max(extent[dim] + by, 0), shape[dim] - at)
            boxes.append(((*begin[:dim], at, *begin[dim + 1 :]), (*extent[:dim], size, *extent[dim + 1 :])))
    times = dict.fromkeys(product(*map(range, shape)), 0)
    for begin, extent in boxes:
        for element in product(*(range(at, at + size) for at, size in zip(begin, extent, strict=True))):
            times[element] += 1
    first = next(((element, n) for element, n in sorted(times.items()) if n != 1), None)
    assert wrongly_covered(shape, boxes) == first
    with patch.object(tiling_room, "FEW", 0):  # as many boxes are looked at
        assert wrongly_covered(shape, boxes) == first


def test_the_time_grows_with_the_pieces_not_with_their_pairs() -> None:
    side = 150
    boxes = [((row, column), (1, 1)) for row in range(side) for column in range(side)]
    began = time.process_time()
    assert wrongly_covered((side, side), boxes[:-1]) == ((side - 1, side - 1), 0)
    assert time.process_time() - began < 5
    pieces = [TensorPiece("rank-00000.safetensors", "", 9, *boxes[0])] * 20_000
    began = time.process_time()
    assert "begins where another" in what_is_wrong(Spec(torch.uint8, (2, 2)), pieces, {"rank-00000.safetensors": (10**6, "")})
    assert time.process_time() - began < 1


def write(tensors: dict[str, tuple[torch.Tensor, list[Box]]], files: int) -> Folder:
    """A checkpoint's folder of tensors in pieces, whose files take turns; state and inventory are empty."""
    folder = Folder(f"memory://forged/{next(FOLDERS)}/step-1")
    folder.make()
    dealt: dict[str, list[tuple[str, str, Box]]] = {}
    turn = count()
    for name, (_, boxes) in tensors.items():
        for box in boxes:
            dealt.setdefault(f"rank-{next(turn) % files:05}.safetensors", []).append((name, piece_name(name, box[0]), box))
    index: Any = {name: (Spec.of(tensor), []) for name, (tensor, _) in tensors.items()}
    listed = {}
    for file, pieces in dealt.items():
        parts = {}
        for name, label, (begin, extent) in pieces:
            part = tensors[name][0]
            for dim, (at, size) in enumerate(zip(begin, extent, strict=True)):
                part = part.narrow(dim, at, size)
            parts[label] = part.clone()
        specs = {label: Spec.of(part) for label, part in parts.items()}
        stream = list(safetensors_bytes(specs, parts.values(), METADATA))
        listed[file] = folder.write(file, stream)
        at = len(stream[0])
        for name, label, box in pieces:
            index[name][1].append(TensorPiece(file, label, at, *box))
            at += specs[label].size
    for name, text in ((INDEX, index_text(index)), (STATE, "{}"), (INVENTORY, "{}")):
        listed[name] = folder.write(name, [text.encode()])
    folder.write_atomically(MANIFEST, manifest_text(listed))
    return folder


def reseal(folder: Folder, name: str, content: bytes) -> None:
    """Replace a file, and its size and checksum in the manifest."""
    files = files_of(folder)
    files[name] = folder.write(name, [content])
    folder.write_atomically(MANIFEST, manifest_text(files))


def read_all(folder: Folder) -> dict[str, torch.Tensor]:
    """Every tensor."""
    index = read_index(folder)
    with FileSet(folder, index) as files:
        return {name: files.whole(name) for name in index}


def test_each_header_is_read_once_however_often_its_file_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [((row,), (1,)) for row in range(3)]
    tensors = {name: (torch.arange(3), boxes) for name in "abcd"}
    folder, parsed = write(tensors, files=3), []
    monkeypatch.setattr(TENSORS, "OPEN_FILES", 1)
    monkeypatch.setattr(TENSORS, "read_header", lambda file, name: (parsed.append(name), read_header(file, name))[1])
    for name, tensor in read_all(folder).items():
        assert torch.equal(tensor, tensors[name][0])
    assert sorted(parsed) == [f"{folder}/rank-0000{rank}.safetensors" for rank in range(3)]


def test_a_file_that_was_refused_is_refused_again() -> None:
    folder = write({"a": (torch.arange(3), [((0,), (3,))])}, files=1)
    index = read_index(folder)
    spec, pieces = index["a"]
    with FileSet(folder, {"a": (spec, [replace(pieces[0], name="b")])}) as files:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="the header says"):
                files.whole("a")
        assert not files.files


def change(draw: st.DrawFn, index: dict[str, Any], name: str) -> None:
    """Change one thing that the index says of a tensor."""
    entry = index[name]
    pieces = entry["pieces"]
    where = draw(st.integers(0, len(pieces) - 1))
    dims = len(entry["shape"])
    kinds = ["dtype", "lose", "double", "file", "stranger", "begin", *["shape", "offset", "size", "exchange"] * (dims > 0)]
    kind = draw(st.sampled_from(kinds))
    dim = draw(st.integers(0, max(dims - 1, 0)))
    by = draw(st.sampled_from([-1, 1]))
    if kind == "dtype":
        entry["dtype"] = draw(st.sampled_from([dtype for dtype in NAMES.values() if dtype != entry["dtype"]]))
    elif kind == "lose":
        del pieces[where]
    elif kind == "double":
        pieces.append(pieces[where])
    elif kind == "file":
        others = ["../../secret", "/etc/passwd", "tensors.json", "rank-00099.safetensors", "rank-00000.safetensors/../x", ""]
        pieces[where][0] = draw(st.sampled_from(others))
    elif kind == "stranger":
        pieces[where].append(0)
    elif kind == "begin":
        pieces[where][1] += by
    elif kind == "shape":
        entry["shape"][dim] += by
    elif kind in ("offset", "size"):
        pieces[where][2 if kind == "offset" else 3][dim] += by
    else:
        entry["shape"] = [*entry["shape"], 1]


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_tiling_is_read_and_any_change_of_its_index_is_refused_by_file_and_tensor(data: st.DataObject) -> None:
    tensors = {}
    for name, dtype in (("model.a.weight", torch.float32), ("optimizer.state.b", torch.bfloat16)):
        shape, boxes = data.draw(tilings())
        tensors[name] = (torch.arange(prod(shape)).reshape(shape).to(dtype), boxes)
    folder = write(tensors, data.draw(st.integers(1, 3)))
    found = read_all(folder)
    assert all(torch.equal(found[name], tensor) for name, (tensor, _) in tensors.items())
    index = folder.read_json(INDEX)
    name = data.draw(st.sampled_from(sorted(tensors)))
    change(data.draw, index, name)
    reseal(folder, INDEX, json.dumps(index).encode())
    with pytest.raises(CheckpointError) as caught:
        read_all(folder)
    message = str(caught.value)
    assert name in message, message
    assert f"{folder}/{INDEX}" in message or f"{folder}/rank-0000" in message, message
    folder.remove()


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another type of the same size": lambda h: h["model.a@0,0"].update(dtype="I32"),
    "another shape of the same size": lambda h: h["model.a@0,0"].update(shape=[4, 2]),
    "another name": lambda h: h.update({"model.c@0,0": h.pop("model.a@0,0")}),
    "two pieces exchanged": lambda h: h.update({"model.a@0,0": h["model.b@0,0"], "model.b@0,0": h["model.a@0,0"]}),
    "a piece more": lambda h: h.update({"model.c@0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "a negative extent": lambda h: h["model.a@0,0"].update(shape=[-2, -4]),
    "an offset that is too high": lambda h: h["model.a@0,0"].update(data_offsets=[4, 36]),
    "no type of torch's": lambda h: h["model.a@0,0"].update(dtype="F128"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_says_something_else_than_the_index_is_refused(case: str) -> None:
    tensors = {name: (torch.ones(2, 4), [((0, 0), (2, 4))]) for name in ("model.a", "model.b")}
    folder = write(tensors, 1)
    name = "rank-00000.safetensors"
    content = folder.read(name)
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    HEADERS[case](entries)
    text = json.dumps(entries).encode()
    text += b" " * max(length - len(text), 0)  # the data stay where they are, where that is possible
    reseal(folder, name, len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match=f"{name}: .*model"):
        read_all(folder)


@pytest.mark.parametrize("length", [0, 1, 10**7, 2**63])
def test_the_length_of_a_header_is_not_believed(length: int) -> None:
    folder = write({"model.a": (torch.ones(2, 4), [((0, 0), (2, 4))])}, 1)
    content = folder.read("rank-00000.safetensors")
    reseal(folder, "rank-00000.safetensors", length.to_bytes(8, "little") + content[8:])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_all(folder)


LISTINGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "outside": (lambda f: f.update({"../../secret": f["state.json"]}), "it lists '../../secret'"),
    "absolute": (lambda f: f.update({"/etc/passwd": f["state.json"]}), "it lists '/etc/passwd'"),
    "unknown": (lambda f: f.update({"weights.pickle": f["state.json"]}), "it lists 'weights.pickle'"),
    "without state": (lambda f: f.pop("state.json"), "it does not list state.json"),
    "without index": (lambda f: f.pop("tensors.json"), "it does not list tensors.json"),
    "negative": (lambda f: f.update({"state.json": (-1, f["state.json"][1])}), "not readable: files.state.json.bytes = -1"),
    "no checksum": (lambda f: f.update({"state.json": (1, "../x")}), "not readable: files.state.json.xxh3_128 = '../x'"),
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_manifest_lists_files_of_a_checkpoint_and_nothing_else(straight: Path, tmp_path: Path, case: str) -> None:
    step = tmp_path / "step-8"
    shutil.copytree(straight.parent / "run" / "checkpoint" / "step-8", step)
    files: dict[str, Any] = files_of(Folder(step))
    change, expected = LISTINGS[case]
    change(files)
    (step / "manifest.json").write_text(manifest_text(files))
    assert expected in (why_incomplete(step) or "")
    with pytest.raises(CheckpointError, match=r"manifest\.json is not"):
        read_index(Folder(step))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[]", "manifest.json is not readable: holds a list"),
        (b"[" * 10**5, "manifest.json is not readable"),
        (b"\xff\xfe", "manifest.json is not readable"),
        (b'{"format": 3, "shards": []}', "of format 3, which a newer version of Cistron writes; this version reads 2"),
        (b'{"format": true}', "of format True; this version reads 2"),
        (b'{"format": 2, "format": 2}', "manifest.json is not readable"),
    ],
)
def test_what_is_no_manifest_of_this_version_is_told(straight: Path, tmp_path: Path, text: bytes, expected: str) -> None:
    step = tmp_path / "step-8"
    shutil.copytree(straight.parent / "run" / "checkpoint" / "step-8", step)
    (step / "manifest.json").write_bytes(text)
    assert (why_incomplete(step) or "").startswith(expected)


def test_a_state_of_another_step_than_its_folder_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished.parent / "run" / "checkpoint"
    (folder / "step-8").rename(folder / "step-800")
    assert why_incomplete(folder / "step-800") == "state.json is of step 8, the folder says 800; was it renamed?"
    assert "state.json is of step 8" in refusal(capsys, finished, "--checkpoint.load_step", "800")
    (folder / "step-800").rename(folder / "the best")
    assert why_incomplete(folder / "the best") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", "inventory.json: holds a list"),
        (b'{"words": 3}', "inventory.json: words = 3"),
        (b'{"words": [[1.5]]}', "inventory.json: words.0.0"),
        (b"\xff", "inventory.json"),
    ],
)
def test_an_inventory_that_is_none_is_named(straight: Path, tmp_path: Path, content: bytes, expected: str) -> None:
    step = tmp_path / "step-8"
    shutil.copytree(straight.parent / "run" / "checkpoint" / "step-8", step)
    forge(step, "inventory.json", content)
    with pytest.raises(CheckpointError) as caught:
        read(step).inventory()
    assert expected in str(caught.value)


def test_a_note_of_the_newest_checkpoint_may_be_damaged(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(finished.parent / "run" / "checkpoint")
    (finished.parent / "run" / NEWEST).write_bytes(b"\xff\x00step")
    assert "step; is its disk mounted?" in refusal(capsys, finished)


def test_an_export_publishes_no_memory_and_only_the_tensors_of_its_model(straight: Path, tmp_path: Path) -> None:
    step = tmp_path / "step-8"
    shutil.copytree(straight.parent / "run" / "checkpoint" / "step-8", step)
    index = json.loads((step / INDEX).read_text())
    piece = index["model.output.weight"]["pieces"][0]
    piece[3] = [1, piece[3][1]]
    forge(step, INDEX, json.dumps(index).encode())
    with pytest.raises(
        CheckpointError, match=r"tensors.json: model.output.weight: its element \[1, 0\] is in none of its 1 pieces"
    ):
        export.main([str(step), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_of_two_exports_into_one_folder_the_second_is_refused(straight: Path, tmp_path: Path) -> None:
    step, out = straight.parent / "run" / "checkpoint" / "step-8", tmp_path / "out"
    with Lock(tmp_path, "out.lock"), pytest.raises(InUseError, match="wait for its end, or name another folder"):
        export.main([str(step), str(out)])
    assert list(tmp_path.iterdir()) == []

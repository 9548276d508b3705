"""Whole files of every kind that the program reads, small, and how each is read: what `fuzz.py` mutates."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cistron.datasets.files import FileStore
from cistron.datasets.loading import DataState
from cistron.datasets.prepare import DumpReader, ListReader, MegatronReader, TokenCorpus
from cistron.datasets.prepare.imported import TokenReader
from cistron.datasets.prepare.run import Task, _finished, _hold_plan, _plan
from cistron.datasets.readers import SequenceFiles
from cistron.datasets.shards import open_shards, verify_shard
from cistron.datasets.tokenizers import ByteTokenizer, TokenizerConfig, build_tokenizer, token_bytes
from cistron.models.config import DecoderConfig
from cistron.models.decoder import Decoder
from cistron.tests.drills.fuzz import Kind, Mutation, json_file, mangled, toml_file
from cistron.tests.helpers.corpora import compress, write_shard
from cistron.tools.support.embedding_files import EmbeddingFile
from cistron.trainer.checkpoints import Folder, RunState, SavedContract, Spec, WholeTensors, write_whole
from cistron.trainer.checkpoints import read as read_checkpoint
from cistron.trainer.checkpoints.find import what_is_lost
from cistron.trainer.checkpoints.format import inspect
from cistron.trainer.checkpoints.manifest import MANIFEST, manifest_text
from cistron.trainer.checkpoints.state import GuardState, Progress, SpikeWindowState
from cistron.trainer.checkpoints.tensors import FileSet, file_index
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.huggingface import HuggingFaceFolder, export
from cistron.trainer.huggingface.tokenizer_files import tokenizer_files
from cistron.trainer.metrics.records import forget_after, last_record
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "the cat sat on the mat, and the dog sat on the cat\n"
STORAGE, BYTE = FileStore(), ByteTokenizer()
SHAPE = DecoderConfig(
    vocab_size=512,
    dim=8,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    hidden_dim=16,
    norm_eps=1e-5,
    qk_norm=False,
    tie_embeddings=False,
    rope={"theta": 10_000.0},
)
Maker = Callable[[Path], tuple[dict[str, Mutation], Callable[[Path], object]]]
MAKERS: dict[str, Maker] = {}


def make_kinds(folder: Path, names: Sequence[str] | None = None) -> dict[str, Kind]:
    """Write the files of these kinds, or of all, below a folder; return the kinds by their names."""
    kinds = {}
    for name in names or MAKERS:
        (folder / name).mkdir()
        kinds[name] = Kind(folder / name, *MAKERS[name](folder / name))
    return kinds


def maker(make: Maker) -> Maker:
    """Enter a function under its name."""
    MAKERS[make.__name__] = make
    return make


def job_state() -> RunState:
    """Return the state of a run with all of its parts."""
    lanes = {"words/0": {"epoch": 1, "block": 3}, "words/1": {}}
    at = {"rows": 8, "begin": 0, "counts": [8], "drawn": [[4, 4]], "rotation": 1}
    data = DataState.model_validate(at | {"lanes": {name: dict(lane) for name, lane in lanes.items()}, "config": {"seed": 0}})
    return RunState.of(
        config=JobConfig(),
        model=SHAPE,
        contract=SavedContract(eos=0, pad=1, vocab=512, tokenizer=None),
        progress=Progress(step=2, tokens_seen=100, rows_hash=2**63, source_tokens={"words": 100}),
        guard=GuardState(
            nonfinite=0, spikes=0, nonfinite_in_a_row=0, last_skipped=0, window=SpikeWindowState(loss=[1.0], grad_norm=[0.5])
        ),
        data=data,
    )


def write_weights(folder: Path) -> None:
    """Write a checkpoint of a tiny model."""
    weights = Decoder(SHAPE).state_dict()
    write_whole(folder, {name: Spec.of(each) for name, each in weights.items()}, weights.__getitem__, job_state())


@maker
def toml(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """A job, and the one that it extends."""
    (folder / "base.toml").write_text(JobConfig().to_toml())
    source = (
        '[[data.sources]]\nname = "a"\nformat = "text"\npaths = ["/x/*.txt"]\n[[data.stages]]\nstep = 3\nweights = {a = 1.0}\n'
    )
    (folder / "job.toml").write_text(f'extends = "base.toml"\n[training]\nsteps = 7\n[tokenizer]\nkind = "byte"\n{source}')
    return dict.fromkeys(("base.toml", "job.toml"), toml_file), lambda at: load_config([str(at / "job.toml")])[0].to_toml()


@maker
def state(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """`state.json`."""
    (folder / "state.json").write_text(job_state().text())

    def read(at: Path) -> None:
        found = RunState.read((at / "state.json").read_bytes(), str(at / "state.json"))
        found.text()
        if found.data is not None:
            found.data_state()

    return {"state.json": json_file}, read


@maker
def manifest(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """`manifest.json` of a checkpoint."""
    write_weights(folder / "step-2")
    return {f"step-2/{MANIFEST}": json_file}, lambda at: read_checkpoint(at / "step-2")


@maker
def checkpoint(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """The other files of a checkpoint, sealed again after a mutation as if they had been written so."""
    write_weights(folder / "step-2")

    def read(at: Path) -> None:
        step = Folder(at / "step-2")
        names = [name for name in step.names() if name != MANIFEST]
        sealed = {name: (step.size(name) or 0, step.digest(name)) for name in names}
        Path(step, MANIFEST).write_text(manifest_text(sealed))
        found, _ = inspect(step)
        if found is not None:
            found.inventory()
            tensors = WholeTensors(step)
            for name in tensors.names():
                try:
                    tensors.read(name)
                except OSError as error:  # which loading turns into a CheckpointError
                    raise SystemError(error) from None

    return {f"step-2/{name}": json_file for name in ("tensors.json", "state.json", "inventory.json")}, read


@maker
def safetensors(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """A file of safetensors as others write them."""
    write_weights(folder / "step-2")
    (folder / "step-2" / "rank-00000.safetensors").rename(folder / "model.safetensors")

    def read(at: Path) -> None:
        index = file_index(at / "model.safetensors")
        with FileSet(Folder(at), index) as files:
            for name in index:
                files.whole(name)

    return {"model.safetensors": mangled}, read


@maker
def records(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """The end of `metrics.jsonl`, as a resume reads it."""
    lines = [json.dumps({"step": step, "loss": 1.5 / step, "lr": 1e-3}) for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, ""]))

    def read(at: Path) -> None:
        forget_after(at / "metrics.jsonl", 5)
        last_record(at / "metrics.jsonl")

    return {"metrics.jsonl": mangled}, read


@maker
def newest(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """The note of the newest checkpoint, where all checkpoints are gone."""
    (folder / "newest_checkpoint").write_text("step-12")
    return {"newest_checkpoint": mangled}, lambda at: what_is_lost(Folder(at), Folder(at / "checkpoint"))


@maker
def hf(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """A folder of a Hugging Face model whose tokenizer is ours."""
    write_weights(folder / "step-2")
    found = read_checkpoint(folder / "step-2")
    export(found, folder / "model", tokenizer=TokenizerConfig(), max_shard_size=2000)

    def read(at: Path) -> None:
        opened = HuggingFaceFolder.open(Folder(at / "model"))
        opened.found()
        if opened.tokenizer:
            tokenizer_files(opened.table, opened.tokenizer)

    names = ("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json")
    files = {f"model/{name}": json_file for name in (*names, "tokenizer_config.json", "special_tokens_map.json")}
    return {**files, f"model/{next((folder / 'model').glob('*.safetensors')).name}": mangled}, read


@maker
def tokenizer(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """A byte-level BPE of the Hugging Face library, with a config.json beside it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT] * 9, trainer)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [0], "pad_token_id": 1, "vocab_size": 270}))

    def read(at: Path) -> None:
        found = build_tokenizer(TokenizerConfig(kind="hf", path=str(at)))
        token_bytes(found)
        found.choose_backend(lambda: [TEXT.encode()])
        found.decode([0, 1])

    return dict.fromkeys(("tokenizer.json", "tokenizer_config.json", "config.json"), json_file), read


@maker
def shards(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """Token shards with weights."""
    write_shard(folder / "000000", [[5, 6, 0], [7, 0], [8, 9, 10, 0]], weighted=True)

    def read(at: Path) -> None:
        for shard in open_shards(STORAGE.expand([str(at)], "*.json"), STORAGE):
            verify_shard(shard)

    (manifest,) = folder.glob("*.json")
    raw = {path.name: mangled for path in folder.iterdir() if path != manifest}
    return {manifest.name: json_file, **raw}, read


@maker
def plan(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """What `cistron prepare` has noted of a folder that it writes."""
    (folder / "a.txt").write_text(TEXT)
    (folder / "plan").mkdir()
    files = STORAGE.expand([str(folder / "a.txt")])
    corpus = TokenCorpus(files=files, reader=DumpReader(STORAGE, 0, False, "uint16"), tokenizer=BYTE, append_eos=False)
    ours = _plan(corpus, 1000)
    _hold_plan(folder / "plan" / "plan.json", ours)
    (folder / "train").mkdir()
    write_shard(folder / "train" / "000000", [[5, 6, 0]])
    result = {"documents": 1, "tokens": 3, "shards": ["train/000000.json"]}
    (folder / "plan" / "000000.json").write_text(json.dumps(result))

    def read(at: Path) -> None:
        _hold_plan(at / "plan" / "plan.json", ours)
        _finished(at, Task(0, ()))

    return dict.fromkeys(("plan/plan.json", "plan/000000.json", "train/000000.json"), json_file), read


@maker
def embeddings(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """A half-done output of `cistron embed`."""
    ours: dict[str, Any] = {"model": "x", "layers": ["norm"], "pool": "mean", "input": [["a", 1, "s"]]}

    def read(at: Path) -> None:
        with EmbeddingFile(at / "e.safetensors", ours, ["norm"], True, {}):
            pass

    with EmbeddingFile(folder / "e.safetensors", ours, ["norm"], True, {}) as output:
        output.add(["a", "b"], [3, 4], {"norm": torch.zeros(2, 4)}, 2)
        output._flush()
    (part,) = output.partial.glob("part-*")
    names = {"e.safetensors.partial/plan.json": json_file, f"e.safetensors.partial/{part.name}": mangled}
    return names, read


@maker
def documents(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """Raw files of every format, plain and compressed."""
    lines = [TEXT, "ACGT" * 20, "a", "é\t>" * 12]
    raw = {
        "a.jsonl": b"".join(json.dumps({"text": line, "id": n}).encode() + b"\n" for n, line in enumerate(lines)),
        "a.tsv": b"id\ttext\n" + b"".join(b"%d\t%s\n" % (n, line.encode().strip()) for n, line in enumerate(lines[:3])),
        "a.csv": b"id,text\r\n" + b"".join(b'%d,"%s ""and"" more,"\n' % (n, line.encode()) for n, line in enumerate(lines)),
        "a.fasta": b"".join(b">r%d x\n%s\n" % (n, b"ACGT" * 30) for n in range(4)),
        "a.txt": TEXT.encode() * 5,
    }
    files: dict[str, Mutation] = {}
    for name, data in raw.items():
        for ending in ("", ".gz", ".bgz", ".zst", ".xz", ".bz2"):
            (folder / f"{name}{ending}").write_bytes(compress(ending, data) if ending else data)
            files[f"{name}{ending}"] = mangled
    pq.write_table(pa.table({"text": [*lines, None], "id": [1, 2, 3, 4, 5]}), folder / "a.parquet", row_group_size=2)
    files["a.parquet"] = mangled
    changed: dict[str, bytes] = {name: (folder / name).read_bytes() for name in files}

    def read(at: Path) -> None:
        for name, data in changed.items():
            if (at / name).read_bytes() != data:
                for format in (None, "lines") if name.startswith("a.txt") else (None,):
                    for _ in SequenceFiles([str(at / name)], format):
                        pass

    return files, read


@maker
def token_files(folder: Path) -> tuple[dict[str, Mutation], Callable[[Path], object]]:
    """Token files of other programs: Megatron's, arrays, parquet."""
    ids = np.array([5, 6, 0, 7, 0, 8, 9, 10, 0], dtype="<u2")
    sizes, starts = (3, 2, 4), (0, 3, 5)
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4) + struct.pack("<3i", *sizes)
    (folder / "m.idx").write_bytes(
        index + struct.pack("<3q", *(2 * start for start in starts)) + struct.pack("<4q", 0, 1, 2, 3)
    )
    ids.tofile(folder / "m.bin")
    ids.tofile(folder / "raw.bin")
    np.save(folder / "array.npy", ids)
    pq.write_table(pa.table({"input_ids": [[5, 6, 0], [7, 0], [8, 9, 10, 0]]}), folder / "lists.parquet")
    readers: list[tuple[TokenReader, list[str]]] = [
        (MegatronReader(STORAGE, 0, False), ["m.bin", "m.idx"]),
        (DumpReader(STORAGE, 0, False, "uint16"), ["raw.bin"]),
        (DumpReader(STORAGE, 0, False, None), ["array.npy"]),
        (ListReader(STORAGE, "input_ids", None), ["lists.parquet"]),
    ]
    changed = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(at: Path) -> None:
        for reader, names in readers:
            if any((at / name).read_bytes() != changed[name] for name in names):
                files = STORAGE.expand([str(at / name) for name in names])
                corpus = TokenCorpus(files=files, reader=reader, tokenizer=BYTE, append_eos=False)
                (at / "out" / "train").mkdir(parents=True, exist_ok=True)
                corpus.convert(Task(0, tuple(corpus.split(10**6))), at / "out", None, lambda event: None)

    return dict.fromkeys(changed, mangled), read

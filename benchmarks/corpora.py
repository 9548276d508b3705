"""What the benchmarks read: made once in a folder, from seeded random numbers or from Python's own sources."""

import gzip
import json
import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|endoftext|>"
VOCABULARY = 32_000
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Lengths = npt.NDArray[np.int64]


def _lognormal(count: int, mean: float, median: float) -> Lengths:
    sigma = math.sqrt(2 * math.log(mean / median))
    return np.random.default_rng(0).lognormal(math.log(median), sigma, count).astype(np.int64) + 2


def text_lengths(count: int) -> Lengths:
    """Lengths of web documents in tokens: lognormal, mean 870, median 450."""
    return _lognormal(count, 870, 450)


def protein_lengths(count: int) -> Lengths:
    """Lengths of proteins: lognormal, mean 350, median 280."""
    return _lognormal(count, 350, 280)


def contig_lengths(count: int) -> Lengths:
    """Lengths of assembled contigs: Pareto from 500 on with a tail of 1.1, cut off at 2 million."""
    lengths = 500 * (1 + np.random.default_rng(0).pareto(1.1, count))
    return np.minimum(lengths, 2e6).astype(np.int64)


def random_ids(lengths: Lengths, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Documents of random ids between 1 and the vocabulary, each ended by its eos, 0."""
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, int(lengths.sum()), dtype=np.uint16)
    ids[np.cumsum(lengths) - 1] = 0
    return ids


def python_documents() -> Iterator[str]:
    """Python sources of this installation in runs of lines of up to 4,000 characters: natural text at hand."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        try:
            lines = path.read_text("utf-8").splitlines(keepends=True)
        except UnicodeDecodeError:
            continue
        document: list[str] = []
        size = 0
        for line in lines:
            document.append(line)
            size += len(line)
            if size >= 4_000:
                yield "".join(document)
                document, size = [], 0
        if document:
            yield "".join(document)


def write_text(folder: Path, megabytes: int = 100) -> None:
    """Write `text/*.jsonl`, eight files of a document per line, and `tokenizer/`, trained on every fourth document."""
    (folder / "text").mkdir(parents=True)
    files = [(folder / "text" / f"{number}.jsonl").open("w") for number in range(8)]
    sample: list[str] = []
    size = 0
    for number, document in enumerate(python_documents()):
        files[number % 8].write(json.dumps({"text": document}) + "\n")
        if number % 4 == 0:
            sample.append(document)
        size += len(document)
        if size > megabytes * 1e6:
            break
    for file in files:
        file.close()
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sample, trainer)
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS, "bos_token": EOS}))


def write_one_file(folder: Path, text_bytes: int = 2 * 10**9) -> None:
    """Write the documents of `text/` as one gzip file and as one row group, and as one text of 2 GB over and over."""
    lines = b"".join(path.read_bytes() for path in sorted((folder / "text").glob("*.jsonl")))
    (folder / "one.jsonl.gz").write_bytes(gzip.compress(lines, 6))
    documents = [json.loads(line)["text"] for line in lines.splitlines()]
    pq.write_table(pa.table({"text": documents}), folder / "one.parquet", row_group_size=len(documents))
    text = "\n\n".join(documents).encode()
    with (folder / "one.txt").open("wb") as file:
        for _ in range(-(-text_bytes // len(text))):
            file.write(text)


def write_shards(folder: Path, tokens: int, shards: int = 4) -> None:
    """Write `shards/`, and the same ids beside them as `tokens.bin`, uint16; documents of `text_lengths`."""
    from cistron.datasets.shards import ShardWriter
    from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer

    tokenizer = build_tokenizer(TokenizerConfig(kind="hf", path=str(folder / "tokenizer")))
    lengths = text_lengths(tokens // shards // 870)
    with (folder / "tokens.bin").open("wb") as plain:
        for number in range(shards):
            writer = ShardWriter(folder / "shards", f"{number}", tokenizer, np.dtype(np.uint16))
            ids = random_ids(lengths, number)
            writer.write(ids, np.cumsum(lengths))
            writer.finish([])
            ids.tofile(plain)


def write_fasta(path: Path, lengths: Lengths, alphabet: bytes, line: int = 80) -> None:
    """Write records of these lengths, of random letters."""
    letters = np.frombuffer(alphabet, dtype=np.uint8)
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number, length in enumerate(lengths.tolist()):
            file.write(b">record %d\n" % number)
            for start in range(0, length, line * 100_000):
                count = min(line * 100_000, length - start)
                text = random.choice(letters, count)
                whole = count // line * line
                lines = np.full((whole // line, line + 1), ord("\n"), dtype=np.uint8)
                lines[:, :line] = text[:whole].reshape(-1, line)
                file.write(lines.tobytes())
                if whole < count:
                    file.write(text[whole:].tobytes() + b"\n")

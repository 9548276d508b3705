"""`cistron prepare` against its tokenizer alone: MB of text per second, from files on disk to shards on disk.

The tokenizer alone encodes groups of 1 MiB that are in memory already, on all cores, before and after each preparation.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from cistron.datasets.documents import DocumentConfig
from cistron.datasets.files import FileStore
from cistron.datasets.prepare import RawCorpus, prepare
from cistron.datasets.readers import build_reader
from cistron.datasets.tokenizers import Tokenizer, build_tokenizer
from cistron.tools.support import progress_bar
from corpora import python_documents, write_text


def write_corpus(folder: Path, megabytes: int) -> None:
    """Write ten files of a document per line; the sources at hand are repeated under a number each."""
    folder.mkdir()
    files = [(folder / f"{number}.jsonl").open("w") for number in range(10)]
    size = 0
    for number, text in enumerate(cycle(list(python_documents()))):
        files[number % 10].write(json.dumps({"text": f"# {number}\n{text}"}) + "\n")
        size += len(text)
        if size > megabytes * 1e6:
            break
    for file in files:
        file.close()


def groups(path: Path) -> Iterator[list[bytes]]:
    """Yield the documents of a file, a MiB at a time."""
    group: list[bytes] = []
    for line in path.open():
        group.append(json.loads(line)["text"].encode())
        if sum(map(len, group)) >= 2**20:
            yield group
            group = []


def tokenizer_speed(tokenizer: Tokenizer, documents: list[list[bytes]]) -> float:
    """MB of text per second."""
    start = time.perf_counter()
    for group in documents:
        tokenizer.encode_batch(group)
    return sum(len(data) for group in documents for data in group) / 1e6 / (time.perf_counter() - start)


def prepare_speed(corpus: RawCorpus, folder: Path, processes: int) -> float:
    """MB of text per second, from nothing to durable shards, starting the processes included."""
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    with progress_bar("prepare") as monitor:
        result = prepare(corpus, folder, shard_bytes=64 * 10**6, processes=processes, monitor=monitor)
    return result.text_bytes / 1e6 / (time.perf_counter() - start)


def main() -> None:
    """Make the corpus, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="text to prepare (default: 1000)")
    parser.add_argument("--processes", type=int, default=2, help="of prepare (default: 2)")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of measurements (default: 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "sample", megabytes=40)
        write_corpus(folder / "text", options.megabytes)
        storage = FileStore()
        for kind in ("byte", "hf"):
            tokenizer = build_tokenizer(kind, str(folder / "sample" / "tokenizer") if kind == "hf" else None)
            corpus = RawCorpus(
                files=storage.expand([str(folder / "text" / "*.jsonl")]),
                reader=build_reader("jsonl", "text", storage),
                tokenizer=tokenizer,
                format="jsonl",
                field="text",
                validation_share=0.005,
                deduplicate=False,
                seed=0,
                skip_bad=False,
                config=DocumentConfig(),
            )
            print(tokenizer.choose_backend(corpus.sample) or kind)
            documents = list(groups(folder / "text" / "0.jsonl"))
            alone = [tokenizer_speed(tokenizer, documents)]
            whole = []
            for _ in range(options.repeats):
                whole.append(prepare_speed(corpus, folder / "out", options.processes))
                alone.append(tokenizer_speed(tokenizer, documents))
            ratio = statistics.median(whole) / statistics.median(alone)
            print(f"{kind}: tokenizer alone {' '.join(f'{speed:.1f}' for speed in alone)} MB/s")
            print(f"{kind}: prepare {' '.join(f'{speed:.1f}' for speed in whole)} MB/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()

"""`cistron prepare`: raw files, or token files of other programs, to token shards.

It can be restarted after any death, and writes the same bytes on any machine.

cistron prepare --config job.toml --output DIR
cistron prepare --format jsonl --field text --tokenizer PATH|byte|protein|dna 'data/*.jsonl.zst' --output DIR
cistron prepare --import megatron --tokenizer PATH PREFIX --output DIR
cistron prepare --verify DIR
cistron prepare --upgrade DIR
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from ..base import IDS, TOKENS, load_plugins
from ..datasets.config import DataConfig
from ..datasets.documents import DocumentConfig, Letters, content_complaints, letter_complaints
from ..datasets.errors import DataConfigError, refuse
from ..datasets.files import FileStore, FileStoreConfig, check_writable, check_writable_folder
from ..datasets.prepare import (
    Corpus,
    DumpReader,
    Emit,
    Event,
    ListReader,
    MegatronReader,
    PadId,
    PreparationResult,
    RawCorpus,
    TokenCorpus,
    TokenReader,
    length_statistics,
    prepare,
    run_tasks,
    shard_lengths,
    stated_pad,
)
from ..datasets.readers import SourceFiles, build_reader, in_folder, raw_formats
from ..datasets.shards import open_shards, upgrade_shard, verify_shard
from ..datasets.tokenizers import TOKENIZERS, Tokenizer, TokenizerConfig, build_tokenizer
from ..trainer.config import load_config
from ..trainer.errors import ConfigError
from . import cli

LETTERS = tuple(Letters.model_fields)
DOCUMENT_KEYS = (*LETTERS, "interior_eos", "trained_roles")


@dataclass(frozen=True)
class Work:
    """A source and where its shards go."""

    name: str
    corpus: Corpus
    folder: Path


def main(argv: Sequence[str]) -> None:
    """Parse the command line, then verify or prepare."""
    load_plugins()  # formats and tokenizers of installed plug-ins are among the choices
    options = make_parser().parse_args(argv)
    if options.verify:
        verify_shards(options.verify, options.processes)
    elif options.upgrade:
        upgrade_shards(options.upgrade, options.processes)
    else:
        run(options)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    # Worker processes import this module too, and without torch, which `support` loads, that takes 0.5 s instead of 2.
    from .support import add_table_options

    parser = argparse.ArgumentParser(
        prog="cistron prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("what to read")
    what.add_argument("paths", nargs="*", help="files, globs or URLs; with --import megatron: prefixes of .bin and .idx")
    what.add_argument("--config", help="a job's TOML: its [tokenizer] and [[data.sources]] instead of paths and flags")
    what.add_argument("--source", action="append", default=[], metavar="NAME", help="only this source of it; may be repeated")
    what.add_argument("--format", choices=raw_formats(), help="of the files at PATHS")
    add_table_options(what, SourceFiles, "field")
    what.add_argument("--tokenizer", help="a tokenizer.json, the folder that holds one, byte, protein or dna")
    add_table_options(what, TokenizerConfig, "eos_token", "pad_token", "on_unknown")
    add_table_options(what, FileStoreConfig, "cache_dir", "cache_gb", "allow_private_redirects")

    how = parser.add_argument_group("what to write")
    how.add_argument("--output", type=Path, metavar="DIR", help="folder for train/, validation/ and plan/")
    how.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one per core")
    how.add_argument("--shard-mb", type=int, default=256, help="bytes of files per shard, in 10^6 (default: 256)")
    how.add_argument(
        "--validation-share", type=float, default=0.0, metavar="SHARE",
        help="share of the documents, chosen by their hash, for validation (default: 0)",
    )  # fmt: skip
    how.add_argument("--seed", type=int, default=0, help="of that hash (default: 0)")
    how.add_argument("--deduplicate", action="store_true", help="leave out documents equal to one before, byte by byte")
    add_table_options(how, DataConfig, *DOCUMENT_KEYS, "on_bad_record")
    how.add_argument("--report", type=Path, metavar="FILE.html", help="write what there is, and how it packs")
    how.add_argument("--seq-len", type=int, help="tokens of a row in the report (default: the TOML's, else 2048)")

    tokens = parser.add_argument_group("token files of other programs")
    tokens.add_argument("--import", dest="kind", choices=["megatron", "tokens", "parquet"], help="what PATHS are")
    tokens.add_argument("--append-eos", action="store_true", help="end documents that come without an eos")
    tokens.add_argument("--eos-id", type=int, help="tokens: the id that ends documents")
    tokens.add_argument(
        "--offsets", metavar="SUFFIX",
        help="tokens: where documents begin, int64 [documents + 1], is in FILE.npy or FILE.bin's neighbour FILE + SUFFIX, "
        "an .npy file (default: an eos ends each)",
    )  # fmt: skip
    tokens.add_argument("--dtype", choices=["uint8", "uint16", "uint32", "int32", "int64"], help="tokens: of raw files")
    tokens.add_argument("--column", default="input_ids", help="parquet: of the ids (default: input_ids)")
    tokens.add_argument(
        "--pad-id", metavar="ID|none",
        help="that fills documents up at their ends, and is taken off (default: parquet's column attention_mask says, "
        "else the tokenizer's pad, unless it is the eos or a byte)",
    )  # fmt: skip
    tokens.add_argument("--weights-column", help="parquet: of loss weights, or of a loss mask of 0 and 1")

    parser.add_argument("--verify", metavar="DIR", help="only check all shards below a folder, byte by byte")
    parser.add_argument("--upgrade", metavar="DIR", help="add checksums of blocks to shards of version 1 below a folder")
    return parser


def run(options: argparse.Namespace) -> None:
    """Prepare every source, then report what there is now."""
    from .support import progress_bar

    limits = {
        "processes": (1, 4096),
        "shard_mb": (1, 10**6),
        "seq_len": (2, TOKENS),
        "seed": (0, 2**63 - 1),
        "eos_id": (0, IDS),
    }
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least {least} and at most {most}")
    if not 0.0 <= options.validation_share < 1.0:
        raise ConfigError(f"--validation-share {options.validation_share}: must be at least 0 and below 1")
    if options.output is None:
        raise ConfigError("--output is not set; name the folder for the shards")
    check_writable_folder(options.output, "--output", ConfigError)
    if options.report is not None:
        if not options.report.parent.is_dir():
            raise ConfigError(f"--report {options.report}: its folder does not exist")
        check_writable(options.report, "--report", ConfigError)

    prepared, said = [], []
    for work in works_of(options):
        start = time.monotonic()
        with progress_bar(work.name) as monitor:
            result = prepare(
                work.corpus, work.folder, shard_bytes=options.shard_mb * 10**6, processes=options.processes, monitor=monitor
            )
        prepared.append((work, result))
        said.append(summary(work, result, time.monotonic() - start))
    print(*said, f"\n{toml_lines(prepared)}", sep="\n", end="")
    if options.report is not None:
        write_page(options.report, prepared, options.seq_len or 2048)
        print(f"\nreport: {options.report}")


def works_of(options: argparse.Namespace) -> list[Work]:
    """Return the sources that the command line names, looked up on disk."""
    from .support import given, read_table

    if options.config is not None:
        return config_works(options)
    for name in ("tokenizer", *(() if options.kind else ("format",))):
        if getattr(options, name) is None:
            raise ConfigError(f"--{name} is not set; give it, or a job's TOML by --config")
    if options.source:
        raise ConfigError("--source names a source of --config, which is not set")
    if not options.paths:
        raise ConfigError("no files are named; give paths or globs, or a job's TOML by --config")
    by_name = options.tokenizer in TOKENIZERS and "path" not in TOKENIZERS[options.tokenizer].options
    kind, path = (options.tokenizer, None) if by_name else ("hf", options.tokenizer)
    named = {**given(options, TokenizerConfig), "kind": kind, "path": path}
    tokenizer = build_tokenizer(read_table(TokenizerConfig, "tokenizer", named))
    storage = FileStore(read_table(FileStoreConfig, "data", given(options, FileStoreConfig)))
    if options.kind:
        return [Work(options.output.name, token_corpus(options, tokenizer, storage), options.output)]
    for name in ("append_eos", "eos_id", "dtype", "offsets", "weights_column", "pad_id"):
        if getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')} is for --import, which is not given")
    files = read_table(SourceFiles, "data", {**given(options, SourceFiles), "name": "PATHS"})
    corpus = raw_corpus(options, tokenizer, storage, read_table(DocumentConfig, "data", given(options, DocumentConfig)), files)
    return [Work(options.output.name, corpus, options.output)]


def config_works(options: argparse.Namespace) -> list[Work]:
    """Return the sources of a job's TOML, each with a folder of its own."""
    for name in ("paths", "format", "tokenizer", "eos_token", "pad_token", "on_unknown", "cache_dir", "kind", *DOCUMENT_KEYS):
        if getattr(options, name) not in (None, []):
            flag = {"paths": "PATHS", "kind": "--import"}.get(name, f"--{name.replace('_', '-')}")
            raise ConfigError(f"{flag} and --config exclude each other: the TOML says what to read")
    config, _ = load_config(["--config", options.config], prog="cistron prepare")
    d = config.data
    sources = {source.name: source for source in d.sources}
    unknown = [name for name in options.source if name not in sources]
    if unknown or not sources:
        names = ", ".join(map(repr, sources)) or "none"
        raise ConfigError(
            f"{options.config}: no source {' or '.join(map(repr, unknown)) or 'at all'}; its sources are: {names}"
        )
    if options.on_bad_record is None:
        options.on_bad_record = d.on_bad_record
    if options.seq_len is None:
        options.seq_len = config.training.seq_len
    storage = FileStore(d)
    tokenizer = build_tokenizer(config.tokenizer)
    works = []
    for name in options.source or sources:
        source = sources[name]
        if source.format == "tokens":
            if options.source:
                raise ConfigError(f"--source {name}: it holds token shards already")
            continue
        corpus = raw_corpus(options, tokenizer, storage, d, source)
        works.append(Work(name, corpus, options.output / name))
    return works


def raw_corpus(
    options: argparse.Namespace, tokenizer: Tokenizer, storage: FileStore, config: DocumentConfig, source: SourceFiles
) -> Corpus:
    """Return a corpus of raw files, with the fastest backend of the tokenizer that is known to give the same ids."""
    refuse([*letter_complaints(config.letters, tokenizer), *content_complaints([source.content], config, tokenizer)])
    corpus = RawCorpus(
        files=storage.expand(source.paths, *in_folder(source.format)),
        reader=build_reader(source.format, source.field, storage),
        tokenizer=tokenizer,
        format=source.format,
        field=source.field,
        validation_share=options.validation_share,
        deduplicate=options.deduplicate,
        seed=options.seed,
        skip_bad=options.on_bad_record == "skip",
        config=config,
    )
    if backend := tokenizer.choose_backend(corpus.sample):
        print(backend)
    return corpus


def token_corpus(options: argparse.Namespace, tokenizer: Tokenizer, storage: FileStore) -> Corpus:
    """Return a corpus of token files of the kind that `--import` names."""
    of_raw = (*LETTERS, "trained_roles")
    for name in ("validation_share", "deduplicate", "on_bad_record", "format", *of_raw):
        if getattr(options, name) or (name in of_raw and getattr(options, name) is not None):
            raise ConfigError(f"--{name.replace('_', '-')} is for raw files; --import takes all documents as they are")
    own = {"eos_id": "tokens", "dtype": "tokens", "offsets": "tokens", "weights_column": "parquet"}
    for name, kind in own.items():
        if getattr(options, name) is not None and options.kind != kind:
            raise ConfigError(f"--{name.replace('_', '-')} is for --import {kind}, and not for {options.kind}")
    paths, eos_id, pad_id = options.paths, tokenizer.eos_id, read_pad(options.pad_id)
    pad, keeps_eos = stated_pad(tokenizer, pad_id), options.interior_eos == "keep"
    reader: TokenReader
    if options.kind == "megatron":
        prefixes = [path.removesuffix(".bin").removesuffix(".idx") for path in paths]
        paths = [prefix + ending for prefix in prefixes for ending in (".bin", ".idx")]
        reader = MegatronReader(storage, eos_id, options.append_eos, pad)
    elif options.kind == "tokens":
        if options.eos_id is None:
            raise ConfigError(f"--eos-id is not set; say which id ends a document of the dump (the tokenizer's is {eos_id})")
        if options.eos_id != eos_id:
            raise ConfigError(
                f"--eos-id {options.eos_id}: the tokenizer's eos is {eos_id} ({tokenizer.where}); they must agree"
            )
        if keeps_eos and options.offsets is None:
            raise ConfigError(
                "--interior-eos keep: nothing but its eos ids says where the documents of a dump end; give --offsets"
            )
        reader = DumpReader(storage, eos_id, options.append_eos, options.dtype, pad, options.offsets)
    else:
        reader = ListReader(storage, options.column, options.weights_column, masked=pad_id is None)
    return TokenCorpus(
        files=storage.expand(paths),
        reader=reader,
        tokenizer=tokenizer,
        append_eos=options.append_eos,
        pad_id=pad_id,
        keeps_eos=keeps_eos,
    )


def read_pad(text: str | None) -> PadId:
    """Return what `--pad-id` says. Raises ConfigError."""
    if text is None or text == "none":
        return text  # type: ignore[return-value]
    if not re.fullmatch(r"-?[0-9]{1,10}", text):
        raise ConfigError(f"--pad-id {text}: must be an id, or none where there is no padding")
    return int(text)


def summary(work: Work, result: PreparationResult, seconds: float) -> str:
    """Describe what was read, written and left out; a rerun counts what was there already."""
    validation = validation_shards(result)
    lines = [
        f"{len(work.corpus.files):,} files, {result.documents:,} documents, {result.tokens:,} tokens",
        f"{len(result.shards) - validation:,} training and {validation:,} validation shards in {work.folder}",
    ]
    if result.text_bytes:
        lines[0] += f", {result.text_bytes / result.tokens:.3f} bytes a token"
    counts = {
        "files without a byte": sum(file.size == 0 for file in work.corpus.files),
        "documents without tokens dropped": result.dropped,
        "duplicates left out": result.duplicates,
        "bad records skipped": result.skipped,
        "letters mapped": result.mapped,
        "documents given an eos": result.eos_appended,
        "eos ids inside of documents kept": result.interior_eos,
        "tokens of padding taken off": result.padding,
    }
    lines.append("; ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing left out")
    lines.append(f"{seconds:.1f} s")
    return f"\n{work.name}: " + "\n  ".join(lines)


def toml_lines(prepared: Sequence[tuple[Work, PreparationResult]]) -> str:
    """Return the sources as tables of a job's TOML."""
    tables = [{"name": work.name, "format": "tokens", "paths": [str(work.folder.resolve() / "train")]} for work, _ in prepared]
    aside = [work.folder.resolve() / "validation" for work, result in prepared if validation_shards(result)]
    return tomli_w.dumps({"data": {"sources": tables}}) + "".join(f"# validation: {folder}\n" for folder in aside)


def validation_shards(result: PreparationResult) -> int:
    """Return how many of the shards are for validation."""
    return sum(shard.startswith("validation/") for shard in result.shards)


def write_page(path: Path, prepared: Sequence[tuple[Work, PreparationResult]], seq_len: int) -> None:
    """Write the HTML page about all sources."""
    from .support import report_section, write_report

    storage = FileStore()
    sections = []
    for work, result in prepared:
        shards = open_shards(storage.expand([str(work.folder / "train")], "*.json"), storage)
        statistics = length_statistics(shard_lengths(shards), seq_len)
        sections.append(report_section(work.name, work.corpus.files, result, statistics, seq_len))
    write_report(path, sections)


def verify_shards(folder: str, processes: int) -> None:
    """Check every shard below a folder, each byte of it. Raises DataError for the first that is not as written."""
    found = on_all_shards("verify", folder, processes, verify_one)
    print(f"{len(found):,} shards with {sum(found):,} tokens are as they were written")


def upgrade_shards(folder: str, processes: int) -> None:
    """Add checksums of blocks to every shard below a folder that lacks them. Raises DataError, as `verify_shards`."""
    made = sum(on_all_shards("upgrade", folder, processes, upgrade_one))
    print(f"{made:,} shards were given checksums of their blocks")


def on_all_shards(option: str, folder: str, processes: int, work: Callable[[str, Emit], int]) -> list[int]:
    """Do the work of an option on each shard below a folder, and return the results. Raises DataConfigError."""
    from .support import progress_bar

    paths = [str(path) for path in sorted(Path(folder).rglob("*.json")) if path.parent.name != "plan"]
    if not paths:
        raise DataConfigError(f"--{option} {folder}: there is no shard (no .json) in it")
    results = []
    with progress_bar(option) as monitor:
        monitor.begin("shards", sum(map(size_of, paths)))
        for path, found in run_tasks(work, paths, processes, monitor):
            results.append(found)
            monitor(Event(stored=size_of(path)))
    return results


def size_of(manifest: str) -> int:
    """Return how many bytes the files of a shard have."""
    return sum(file.stat().st_size for file in Path(manifest).parent.glob(f"{Path(manifest).stem}.*"))


def verify_one(path: str, _: Emit) -> int:
    """Check one shard; return how many tokens it has."""
    storage = FileStore()
    (shard,) = open_shards(storage.expand([path]), storage)
    verify_shard(shard)
    return shard.tokens


def upgrade_one(path: str, _: Emit) -> int:
    """Upgrade one shard; return 1 where that was needed."""
    return int(upgrade_shard(Path(path)))


if __name__ == "__main__":
    cli.run("prepare", sys.argv[1:])

"""A genome that never was, its proteins and its promoters: files for first runs and tests that need no download.

    python -m cistron.datasets.synthetic FOLDER [--seed N] [--size BASES]

| file | content |
|---|---|
| `genome.fa` | contigs: intergenic DNA (40 % G+C) with repeats in lowercase and runs of N; genes on both strands |
| `proteins.fa` | the genes by the standard genetic code, each named with its place in the genome |
| `promoters_train.jsonl`, `promoters_valid.jsonl` | windows of 200 bases: `name`, `sequence`, `label`, `strength` |
| `promoters_train.tsv`, `promoters_valid.tsv` | the same as tables |

A gene is made as bacteria have them (`upstream`, `coding`): 20 bases of mostly A and T (the UP element), the boxes
TTGACA and TATAAT 16 to 18 bases apart, the start of the transcript, a ribosome-binding site AGGAGG, and 5 to 9 bases on
ATG, codons, a stop codon. Codons follow the propensities of helix, strand and loop, whose stretches take turns, and
synonymous ones prefer G and C. Any letter of a box is another one now and then. Half of all genes are dormant: they
have no UP element, and of their boxes one is kept at most and the other is shuffled.

The task of the promoter files is to tell windows upstream of living genes (label 1) from those of dormant ones (0).
Counting A and T goes some of the way (an area under the ROC curve of 0.73), the two boxes go further: one alone is no
promoter. `strength` is the share of the boxes' twelve letters that are as they should be, less 0.1 for a spacer other
than 17; it is 0 where the label is. These genes are not in `genome.fa`: a model trained on the one has not seen the
others.

Everything is drawn from raw Philox bits, as in `randomness.py`, so that files of the same seed and size are the same on
each machine. `{synthetic}` in a path of a source stands for the folder of seed 0, made in the user's cache on first
use.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..base import printable
from .nucleotides import reverse_complement
from .randomness import uniform

VERSION = 1  # of the files that a seed gives
SIZE = 2_000_000
CONTIGS = 16
TRAIN, VALID = 6000, 1000
WINDOW = 200
LINE = 80
MADE_AT = 1_700_000_000  # files made again, on whatever machine, are not taken for changed ones
BASES = np.frombuffer(b"TCAG", dtype=np.uint8)
# The standard genetic code (NCBI translation table 1), its codons in the order TTT, TTC, TTA, TTG, TCT, ...
AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
CODONS = [bytes(BASES[[number // 16, number // 4 % 4, number % 4]]) for number in range(64)]
STOPS = (b"TAA", b"TAA", b"TGA", b"TAG")
FAVOURED = {"helix": "AELKQMR", "strand": "VIYTFWC", "loop": "GPNDSH"}  # four times as frequent as the others
BOX_35, BOX_10, RIBOSOME = b"TTGACA", b"TATAAT", b"AGGAGG"
INTACT = 0.85  # chance of a letter of a box
DORMANT = 0.5
GC = 0.40
UP = 20
CONTIG, REPEAT, PROMOTER = range(3)  # what random bits are for


class Draws:
    """Random choices that depend on the integers of `key` alone."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(key))

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return float64 [count] in [0, 1)."""
        return uniform(self._bits.random_raw(count))

    def below(self, bound: int) -> int:
        """Return an integer from 0 to bound - 1."""
        return int(self.uniform(1)[0] * bound)

    def between(self, low: int, high: int) -> int:
        """Return an integer from low to high."""
        return low + self.below(high - low + 1)

    def happens(self, chance: float) -> bool:
        """Return True as often as `chance` says."""
        return bool(self.uniform(1)[0] < chance)

    def bases(self, count: int, gc: float = GC) -> bytes:
        """Return `count` bases of DNA, a share of them G or C."""
        cumulative = np.cumsum([(1 - gc) / 2, gc / 2, (1 - gc) / 2])
        return bytes(BASES[np.searchsorted(cumulative, self.uniform(count), side="right")])

    def mutated(self, sequence: bytes, chance: float) -> bytes:
        """Return a sequence in which each base was drawn anew with some chance."""
        letters = np.frombuffer(sequence, dtype=np.uint8)
        anew = BASES[(self.uniform(len(letters)) * 4).astype(np.int64)]
        return bytes(np.where(self.uniform(len(letters)) < chance, anew, letters))

    def shuffled(self, sequence: bytes) -> bytes:
        """Return the same letters in another order."""
        return bytes(np.frombuffer(sequence, dtype=np.uint8)[np.argsort(self.uniform(len(sequence)), kind="stable")])


def codon_usage() -> list[npt.NDArray[np.float64]]:
    """Return for helix, strand and loop the cumulative probabilities of the 64 codons; stop codons have none."""
    usage = []
    for favoured in FAVOURED.values():
        weights = np.array(
            [
                0.0 if amino == "*" else (4.0 if amino in favoured else 1.0) * (2.0 if codon[2] in b"CG" else 1.0)
                for codon, amino in zip(CODONS, AMINO_ACIDS, strict=True)
            ]
        )
        usage.append(np.cumsum(weights / weights.sum()))
    return usage


USAGE = codon_usage()


def coding(draws: Draws) -> bytes:
    """Return a gene from its start codon to its stop codon: stretches of helix, strand and loop."""
    codons = [b"ATG"]
    length, structure = draws.between(80, 400), draws.below(3)
    while len(codons) < length:
        stretch = np.searchsorted(USAGE[structure], draws.uniform(draws.between(6, 20)), side="right")
        codons += [CODONS[number] for number in stretch.tolist()]
        structure = (structure + draws.between(1, 2)) % 3
    return b"".join([*codons[:length], STOPS[draws.below(len(STOPS))]])


def translate(gene: bytes) -> str:
    """Return the protein of a gene in capital letters, up to its first stop codon."""
    amino = dict(zip(CODONS, AMINO_ACIDS, strict=True))
    return "".join(amino[gene[at : at + 3]] for at in range(0, len(gene) - 2, 3)).partition("*")[0]


class Upstream(NamedTuple):
    """What lies before a gene.

    Attributes:
        sequence: 250 bases or some more, up to the start codon.
        begin: Where its first box begins.
        end: Where its second box ends.
        strength: Of its promoter, 0 where it is dormant.
    """

    sequence: bytes
    begin: int
    end: int
    strength: float


def upstream(draws: Draws) -> Upstream:
    """Make what lies before a gene: UP element and two boxes, or what is left of them, and a ribosome-binding site."""
    far, near = draws.mutated(BOX_35, (1 - INTACT) * 4 / 3), draws.mutated(BOX_10, (1 - INTACT) * 4 / 3)
    spacer = draws.between(16, 18)
    matches = sum(a == b for a, b in zip(far + near, BOX_35 + BOX_10, strict=True))
    strength = matches / 12 - 0.1 * (spacer != 17)
    before = draws.bases(WINDOW)
    if draws.happens(DORMANT):
        kept = draws.below(4)  # the first box, the second, or none
        far = far if kept == 0 else draws.shuffled(far)
        near = near if kept == 1 else draws.shuffled(near)
        strength = 0.0
    else:
        before = before[:-UP] + draws.bases(UP, gc=0.1)
    promoter = far + draws.bases(spacer) + near
    leader = draws.bases(draws.between(5, 9) + draws.between(12, 30)) + draws.mutated(RIBOSOME, 0.1)
    sequence = before + promoter + leader + draws.bases(draws.between(5, 9))
    return Upstream(sequence, len(before), len(before + promoter), strength)


class Contig(NamedTuple):
    """A stretch of genome.

    Attributes:
        sequence: Letters of it.
        genes: Begin (from 0), end and strand of each gene, and its letters from ATG to stop.
    """

    sequence: bytes
    genes: list[tuple[int, int, str, bytes]]


def make_contig(seed: int, number: int, size: int, repeats: Sequence[bytes]) -> Contig:
    """Make about `size` bases: intergenic DNA, now and then a repeat or a run of N, and a gene, over and over."""
    draws = Draws(seed, CONTIG, number)
    parts: list[bytes] = []
    genes: list[tuple[int, int, str, bytes]] = []
    at = 0
    while at < size:
        between = [draws.bases(draws.between(50, 400))]
        if draws.happens(0.25):
            between += [draws.mutated(repeats[draws.below(len(repeats))], 0.1).lower(), draws.bases(60)]
        if draws.happens(0.01):
            between += [b"N" * draws.between(20, 200), draws.bases(60)]
        before, gene = upstream(draws).sequence, coding(draws)
        strand = "-" if draws.happens(0.5) else "+"
        at += sum(map(len, between))
        begin = at + (len(before) if strand == "+" else 0)
        genes.append((begin, begin + len(gene), strand, gene))
        unit = before + gene
        parts += [*between, unit if strand == "+" else reverse_complement(unit)]
        at += len(unit)
    return Contig(b"".join(parts), genes)


def make_windows(seed: int, first: int, count: int) -> Iterator[dict[str, str | int | float]]:
    """Yield promoter records; windows end anywhere from the second box to the start codon."""
    for number in range(first, first + count):
        draws = Draws(seed, PROMOTER, number)
        region = upstream(draws)
        end = draws.between(region.end, len(region.sequence))
        sequence = region.sequence[end - WINDOW : end].decode()
        strength = round(region.strength, 4)
        yield {"name": f"promoter_{number}", "sequence": sequence, "label": int(strength > 0), "strength": strength}


def fasta(name: str, sequence: str) -> str:
    """Return a FASTA record of lines of `LINE` letters."""
    lines = (sequence[at : at + LINE] for at in range(0, len(sequence), LINE))
    return f">{name}\n" + "".join(f"{line}\n" for line in lines)


def write(folder: Path, seed: int = 0, size: int = SIZE) -> None:
    """Write all files into `folder`, which must exist.

    Args:
        folder: Where to.
        seed: Of everything.
        size: Bases of `genome.fa`, about; the promoter files do not depend on it.
    """
    draws = Draws(seed, REPEAT)
    repeats = [draws.bases(draws.between(150, 600)) for _ in range(5)]
    contigs = [make_contig(seed, number, -(-size // CONTIGS), repeats) for number in range(CONTIGS)]
    genome = [
        fasta(f"contig_{number} synthetic, seed {seed}", contig.sequence.decode())
        for number, contig in enumerate(contigs, start=1)
    ]
    places = [(number, gene) for number, contig in enumerate(contigs, start=1) for gene in contig.genes]
    proteins = [
        fasta(f"gene_{index} contig_{number}:{begin + 1}-{end}({strand})", translate(gene))
        for index, (number, (begin, end, strand, gene)) in enumerate(places, start=1)
    ]
    files = {"genome.fa": "".join(genome), "proteins.fa": "".join(proteins)}
    for name, first, count in (("train", 0, TRAIN), ("valid", TRAIN, VALID)):
        records = list(make_windows(seed, first, count))
        files[f"promoters_{name}.jsonl"] = "".join(json.dumps(record) + "\n" for record in records)
        table = [list(records[0]), *(map(str, record.values()) for record in records)]
        files[f"promoters_{name}.tsv"] = "".join("\t".join(cells) + "\n" for cells in table)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="ascii", newline="\n")
        os.utime(folder / name, (MADE_AT, MADE_AT))


def cached() -> Path:
    """Return the folder that `{synthetic}` stands for; made on first use.

    Any number of processes may call it at once: each that finds nothing makes the files beside, and the first to be
    done moves them into place.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cistron"
    folder = home / f"synthetic-{VERSION}"
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".synthetic-", dir=home))
    try:
        write(made)
        made.chmod(0o755)
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was not first
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write all files into its folder."""
    parser = argparse.ArgumentParser(prog="python -m cistron.datasets.synthetic", description="Write a made-up genome.")
    parser.add_argument("folder", type=Path, help="where to; made if it is not there, and else it must be empty")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.add_argument("--size", type=int, default=SIZE, help=f"bases of the genome, about (default: {SIZE})")
    options = parser.parse_args(argv)
    if options.seed < 0 or options.size < 1:
        parser.error(f"--seed {options.seed} --size {options.size}: must be at least 0 and 1")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        if any(options.folder.iterdir()):
            parser.error(f"{options.folder}: is not empty")
        write(options.folder, options.seed, options.size)
    except OSError as error:
        parser.error(f"{options.folder}: cannot be written: {error}")
    names = ", ".join(sorted(path.name for path in options.folder.iterdir()))
    print(printable(f"wrote {names} to {options.folder}"))


if __name__ == "__main__":
    main(sys.argv[1:])

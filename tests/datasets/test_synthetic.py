"""The made-up genome is what its description says: proteins translate its genes, files depend on the seed alone."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cistron.datasets import synthetic
from cistron.datasets.files import FileStore
from cistron.trainer.metrics.label_scores import auroc

# Read off a printed table of the genetic code, for letters alone.
CODE = {
    "A": "GCT GCC GCA GCG", "C": "TGT TGC", "D": "GAT GAC", "E": "GAA GAG", "F": "TTT TTC", "G": "GGT GGC GGA GGG",
    "H": "CAT CAC", "I": "ATT ATC ATA", "K": "AAA AAG", "L": "TTA TTG CTT CTC CTA CTG", "M": "ATG", "N": "AAT AAC",
    "P": "CCT CCC CCA CCG", "Q": "CAA CAG", "R": "CGT CGC CGA CGG AGA AGG", "S": "TCT TCC TCA TCG AGT AGC",
    "T": "ACT ACC ACA ACG", "V": "GTT GTC GTA GTG", "W": "TGG", "Y": "TAT TAC", "*": "TAA TAG TGA",
}  # fmt: skip
AMINO = {codon: letter for letter, codons in CODE.items() for codon in codons.split()}


def read_fasta(path: Path) -> dict[str, str]:
    records = path.read_text().removeprefix(">").split("\n>")
    return {head: "".join(lines) for head, *lines in (record.split("\n") for record in records)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of seed 0, with a genome of 300,000 bases, made by the command."""
    folder = tmp_path_factory.mktemp("synthetic") / "files"
    command = [sys.executable, "-m", "cistron.datasets.synthetic", str(folder), "--size", "300000"]
    subprocess.run(command, check=True, capture_output=True)
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)
    return folder


def test_each_protein_is_read_off_its_gene_on_either_strand(folder: Path) -> None:
    contigs = {head.split()[0]: sequence for head, sequence in read_fasta(folder / "genome.fa").items()}
    proteins = read_fasta(folder / "proteins.fa")
    strands = []
    for head, protein in proteins.items():
        match = re.fullmatch(r"gene_\d+ (contig_\d+):(\d+)-(\d+)\((.)\)", head)
        assert match
        gene = contigs[match[1]][int(match[2]) - 1 : int(match[3])]
        if match[4] == "-":
            gene = "".join({"A": "T", "C": "G", "G": "C", "T": "A"}[base] for base in reversed(gene))
        assert gene.startswith("ATG")
        assert "".join(AMINO[gene[at : at + 3]] for at in range(0, len(gene), 3)) == protein + "*"
        strands.append(match[4])
    assert len(proteins) > 150
    assert 0.4 < strands.count("+") / len(strands) < 0.6


def test_the_genome_has_repeats_in_lowercase_runs_of_n_and_two_compositions(folder: Path) -> None:
    genome = "".join(read_fasta(folder / "genome.fa").values())
    assert set(genome) == set("ACGTNacgt")
    assert 300_000 <= len(genome) < 340_000
    assert 0.03 < sum(map(genome.count, "acgt")) / len(genome) < 0.15
    genes = sum(3 * len(protein) + 3 for protein in read_fasta(folder / "proteins.fa").values())
    assert 0.3 < genes / len(genome) < 0.7
    words = {genome[at : at + 30].upper() for match in re.finditer("[acgt]{60,}", genome) for at in [match.start() + 10]}
    assert words
    assert all("N" not in word for word in words)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_promoter_files_agree_and_half_of_the_windows_are_alive(part: str, folder: Path) -> None:
    records = [json.loads(line) for line in (folder / f"promoters_{part}.jsonl").read_text().splitlines()]
    head, *rows = (line.split("\t") for line in (folder / f"promoters_{part}.tsv").read_text().splitlines())
    assert rows == [[str(record[name]) for name in head] for record in records]
    assert all(re.fullmatch("[ACGT]{200}", record["sequence"]) for record in records)
    assert all((record["strength"] > 0) == (record["label"] == 1) for record in records)
    assert 0.45 < sum(record["label"] for record in records) / len(records) < 0.55


def test_two_boxes_tell_a_promoter_and_one_box_or_letters_alone_do_not(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "promoters_train.jsonl").read_text().splitlines()]
    labels = np.array([record["label"] for record in records])
    both, one = (
        np.array([bool(re.search(pattern, record["sequence"])) for record in records])
        for pattern in ("TTGACA.{16,18}TATAAT", "TATAAT")
    )
    assert both.sum() > 200
    assert labels[both].mean() > 0.95
    assert labels[one & ~both].mean() < 0.7
    of_letters = np.array([sum(map(record["sequence"].count, "AT")) for record in records])
    assert 0.7 < auroc(of_letters.astype(np.float64), labels) < 0.76


def test_files_depend_on_the_seed_alone_and_the_held_out_ones_are_not_in_the_genome(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        synthetic.write(tmp_path / str(seed), seed, 300_000)
    for path in folder.iterdir():
        same, other = (tmp_path / str(seed) / path.name for seed in (0, 1))
        assert path.read_bytes() == same.read_bytes()
        assert path.stat().st_mtime_ns == same.stat().st_mtime_ns, "files made again are not taken for changed ones"
        assert path.read_bytes() != other.read_bytes()
    genome = "".join(read_fasta(folder / "genome.fa").values())
    valid = [json.loads(line)["sequence"] for line in (folder / "promoters_valid.jsonl").read_text().splitlines()]
    assert not any(window[80:120] in genome for window in valid)


def test_a_path_names_the_cached_files_which_many_may_ask_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(synthetic, "write", partial(synthetic.write, size=20_000))
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(FileStore().expand, ["{synthetic}/*.fa"]) for _ in range(2)]
    found = [[Path(file.path) for file in future.result()] for future in futures]
    home = tmp_path / "cistron" / f"synthetic-{synthetic.VERSION}"
    assert found == [[home / "genome.fa", home / "proteins.fa"]] * 2
    assert [path.name for path in home.parent.iterdir()] == [home.name], "nothing is left beside"

r"""FASTA: a record is a document, everything between two header lines, line ends removed and case kept.

A record without a residue is bad, and so is one with a blank, a control byte or a `>` in a line of its sequence or
with a line that begins with `;`, an old form of comment: a `>` there is where files were joined, the first of which had
no last line end. One pass over a group tells whether there is any, in 3 % of the time that reading takes.

A long record comes in stretches of `group_bytes`, cut before a line feed rather than after one. So `\n>` always lies
within a stretch, and what a stretch begins with is never a header.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from ..errors import DataError
from ..files import ByteFile, look_at_lines
from .pieces import Piece
from .records import BOM, GROUP_BYTES, GROUP_DOCUMENTS, READERS, Reader, Records, Window

BOUNDARY = b"\n>"
NO_RESIDUE = "the record has no residue; remove its header, or put the sequence behind it"
MISPLACED = re.compile(rb"[\0-\x09\x0b\x0c\x0e-\x20>]|(?<=\n);")
NAMES = {b" ": "a blank", b"\t": "a tab", b"\v": "a vertical tab", b"\f": "a form feed", b"\0": "a NUL byte"}
JOINED = (
    "'>' within a line of the sequence: a record begins here, and the line end before it is missing, as where files are "
    "joined of which the first has none at its end; put it there"
)
CR_IN_HEADER = "a carriage return within a header: lines end by it alone here, so that a sequence would be lost in it"
BY_BIOPYTHON = "convert it, as Biopython's SeqIO.convert('{name}', '{format}', 'x.fasta', 'fasta') does"
# Of formats that hold sequences too: how they begin, and what to do with them.
FASTQ = "this is FASTQ, with qualities; convert it, as `seqtk seq -A x.fq > x.fasta` does"
SAM = "this is SAM, of alignments; convert it, as `samtools fasta x.sam > x.fasta` does"
GENBANK, EMBL = (
    f"this is {name}, with annotations; {BY_BIOPYTHON.format(name=f'x.{ending}', format=ending)}"
    for name, ending in (("GenBank", "gb"), ("EMBL or UniProt", "embl"))
)
OTHERS = (
    (re.compile(rb"@[^\n]*\n[^\n]+\n\+"), FASTQ),
    (re.compile(rb"@(HD|SQ|RG|PG|CO)\t"), SAM),
    (re.compile(rb"LOCUS {2,}"), GENBANK),
    (re.compile(rb"ID {3}"), EMBL),
    (re.compile(rb"##(gff|fileformat=VCF)"), "this is GFF or VCF, which holds places in sequences; give the sequences"),
    (re.compile(rb"# STOCKHOLM|CLUSTAL"), f"this is an alignment; {BY_BIOPYTHON.format(name='x.sto', format='stockholm')}"),
)
ENDINGS = {".fq": FASTQ, ".fastq": FASTQ, ".sam": SAM, ".gb": GENBANK, ".gbk": GENBANK, ".gbff": GENBANK, ".embl": EMBL}


class Fault(NamedTuple):
    """What is wrong with a record, and the byte of its part at which it is."""

    problem: str
    at: int


@READERS.add("fasta", says="a record is a document")
class FastaReader(Reader):
    """Documents between headers; an address is that of the header's `>`, or lies within the record.

    A header has fewer than `group_bytes`.
    """

    endings = (".fasta", ".fa", ".fna", ".faa", ".ffn", ".frn", ".fas")
    boundary = BOUNDARY
    cut = "where it is uncompressed or in bgzip's blocks"

    @override
    def look(self, path: str, head: bytes) -> None:
        super().look(path, head)
        look_at_lines(path, head)
        begin = head.removeprefix(BOM).lstrip()
        if (problem := next((told for start, told in OTHERS if start.match(begin)), None)) is not None:
            raise DataError(problem, file=path, offset=0)

    @override
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        with self.storage.open(piece.path) as file:
            window = Window(self.begin(file, piece.path, offset), piece, offset)
            if first:
                yield from self._before_header(window, piece.path)
            # One byte more than a stretch: what a record comes in depends on its own beginning only.
            while window.fill(self.group_bytes + 1):
                whole = len(window.buffer) if window.over else window.buffer.rfind(BOUNDARY) + 1
                if whole:
                    offset = window.offset
                    yield from self._group(window.take(whole), piece.path, offset, first)
                    first = True
                else:
                    stretch = self._stretch(window, piece.path, first)
                    yield stretch
                    first = stretch.error is not None
                    if first:
                        _pass_over(window, self.group_bytes)

    def _before_header(self, window: Window, path: str) -> Iterator[Records]:
        """Move to the first header; whatever is before it but blank lines is one bad record."""
        opens_line, good = True, True
        while window.fill(self.group_bytes):
            if opens_line and window.buffer.startswith(b">"):
                return
            offset = window.offset
            junk = window.take(window.buffer.find(BOUNDARY) + 1 or len(window.buffer))
            opens_line = junk.endswith(b"\n")
            if good and junk.strip():
                begin = junk.rfind(b"\n", 0, len(junk) - len(junk.lstrip())) + 1
                found = junk[begin:].partition(b"\n")[0][:40]
                problem = f"expected a header line beginning with '>', found {found!r}"
                yield Records([], [], error=DataError(problem, file=path, offset=offset + begin), bad_offset=offset + begin)
                good = False

    def _stretch(self, window: Window, path: str, first: bool) -> Records:
        """Take a stretch of a record that is longer."""
        offset = window.offset
        data = window.take(self.group_bytes - (window.buffer[self.group_bytes - 1 : self.group_bytes] == b"\n"))
        begin = data.find(b"\n") + 1 if first else 0
        if first and not begin:
            problem = f"a header line has more than {self.group_bytes} bytes, beginning with {data[:40]!r}"
            raise DataError(problem, file=path, offset=offset)
        if (at := data.find(b"\r", 0, max(begin - 2, 0))) >= 0:
            return _bad(Fault(CR_IN_HEADER, at), path, offset, offset, first)
        document = _joined(data[begin:])
        if _suspicious(document) and (fault := _misplaced(data, begin)):
            return _bad(fault, path, offset, offset, first)
        return Records([document], [offset], first, last=False, headers=[data[: begin - 1] if first else b""])

    def _group(self, data: bytes, path: str, offset: int, first: bool) -> Iterator[Records]:
        """Yield the records of `data`, all of them whole but the first one's beginning."""
        parts = data.split(BOUNDARY)
        starts = list(accumulate((len(part) + 2 for part in parts[:-1]), initial=offset))
        offsets = [offset, *(start - 1 for start in starts[1:])]
        records = [part.partition(b"\n") for part in parts]
        documents, headers = [_joined(lines) for _, _, lines in records], [header for header, _, _ in records]
        if not first:
            documents[0], headers[0] = _joined(parts[0]), b""
        begun = 0  # the first document that was not yielded
        if not all(documents) or _suspicious(b"".join(documents)) or _has_lone_return(data):
            for place, part in enumerate(parts):
                opens = first or place > 0
                fault = _misplaced(part, (part.find(b"\n") + 1 or len(part)) if opens else 0)
                if not documents[place]:
                    header = offsets[place] if opens else self._bare_header(path, offset)
                    fault = fault if header is None else Fault(NO_RESIDUE, header - starts[place])
                if (at := headers[place].find(b"\r", 0, -1)) >= 0:
                    fault = Fault(CR_IN_HEADER, at)
                if fault:
                    whole = slice(begun, place)
                    yield from _portions(documents[whole], offsets[whole], headers[whole], first or begun > 0)
                    yield _bad(fault, path, starts[place], offsets[place], opens)
                    begun = place + 1
        yield from _portions(documents[begun:], offsets[begun:], headers[begun:], first or begun > 0)

    def _bare_header(self, path: str, offset: int) -> int | None:
        """Return where the record that goes on at `offset` begins, if it has had no residue before."""
        with self.storage.open(path) as file:
            header = _header_before(file, offset)
        residue = self.locate(path, header, 0)[1]
        return None if residue < offset else header

    def locate(self, path: str, offset: int, index: int) -> tuple[str | None, int]:
        """Return the name of the record at `offset`, and the byte that `index` residues later is."""
        with self.storage.open(path) as file:
            header = _header_before(file, offset)
            file.seek(header)
            line, line_end, _ = file.read(GROUP_BYTES).partition(b"\n")
            words = line[1:].decode("utf-8", errors="replace").split()
            name = (words or [""])[0] if line.startswith(b">") else None  # None: before the first header
            if header == offset:
                offset += len(line + line_end)
            file.seek(offset)
            while data := file.read(GROUP_BYTES):
                residues = [place for place, byte in enumerate(data) if byte not in b"\r\n"]
                if index < len(residues):
                    return name, offset + residues[index]
                index -= len(residues)
                offset += len(data)
        return name, offset


def _portions(documents: list[bytes], offsets: list[int], headers: list[bytes], first: bool) -> Iterator[Records]:
    """Yield documents as groups of at most `GROUP_DOCUMENTS`."""
    for start in range(0, len(documents), GROUP_DOCUMENTS):
        stop = start + GROUP_DOCUMENTS
        yield Records(documents[start:stop], offsets[start:stop], first or start > 0, headers=headers[start:stop])


def _bad(fault: Fault, path: str, start: int, address: int, opens: bool) -> Records:
    """Return the bad record whose part begins at byte `start`, or that continues where it does not open."""
    return Records([], [], opens, error=DataError(fault.problem, file=path, offset=start + fault.at), bad_offset=address)


def _suspicious(residues: bytes) -> bool:
    """Tell whether there may be anything but residues: white space and controls are the smallest bytes."""
    return b";" in residues or b">" in residues or bool(np.frombuffer(residues, dtype=np.uint8).min(initial=0xFF) <= ord(" "))


def _misplaced(part: bytes, begin: int) -> Fault | None:
    """Find the first byte from `begin` on that no sequence has."""
    found = MISPLACED.search(part, begin)
    if found is None:
        return None
    if found[0] == b";":
        return Fault("a line of the sequence begins with ';'; comments are not part of FASTA: remove the line", found.start())
    if found[0] == b">":
        return Fault(JOINED, found.start())
    name = NAMES.get(found[0], f"the control byte 0x{found[0][0]:02x}")
    return Fault(f"{name} in a line of the sequence; remove it", found.start())


def _has_lone_return(data: bytes) -> bool:
    """Tell whether there is a carriage return that no line feed follows."""
    return b"\r" in data and data.count(b"\r") > data.count(b"\r\n") + data.endswith(b"\r")


def _pass_over(window: Window, size: int) -> None:
    """Move to the next header."""
    while window.fill(size + 1):
        if end := window.buffer.find(BOUNDARY) + 1:
            window.take(end)
            return
        window.take(len(window.buffer) - (not window.over and window.buffer.endswith(b"\n")))


def _joined(lines: bytes) -> bytes:
    """Remove line ends; `bytes.translate` takes 1.7 times as long for short records and 3 times for long ones."""
    return lines.replace(b"\n", b"").replace(b"\r", b"")


def _header_before(file: ByteFile, offset: int) -> int:
    """Return where the last header that begins at or before `offset` does, looking back further and further."""
    reach = GROUP_BYTES
    while True:
        at = max(0, offset - reach)
        header = 0 if at == 0 else None
        file.seek(at)
        before = b""
        while at <= offset and (block := file.read(min(GROUP_BYTES, offset + 1 - at))):
            if at == 0 and block.startswith(BOM):
                header = len(BOM)
            data = before + block
            if (place := data.rfind(BOUNDARY)) >= 0:
                header = at - len(before) + place + 1
            at += len(block)
            before = block[-1:]
        if header is not None:
            return header
        reach *= 2

"""Write the report of `cistron prepare --report`: one HTML page that needs no other file."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from ...datasets.files import DataFile, write_atomically
from ...datasets.prepare import LengthStatistics, PreparationResult
from ...trainer.errors import ConfigError

FILES = 20  # listed by name
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Token shards</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} td {{ padding: .1em 1.5em .1em 0; vertical-align: top }}
td + td {{ text-align: right; font-variant-numeric: tabular-nums }} img {{ max-width: 100% }}
</style></head><body><h1>Token shards</h1>
{sections}
</body></html>
"""


def write_report(path: Path, sections: Sequence[str]) -> None:
    """Write the page; the same sections give the same bytes. Raises ConfigError where it cannot be written."""
    try:
        write_atomically(path, PAGE.format(sections="\n".join(sections)).encode())
    except OSError as error:
        raise ConfigError(f"--report {path}: cannot be written: {error.strerror}; all shards are") from None


def report_section(name: str, files: Sequence[DataFile], result: PreparationResult, s: LengthStatistics, seq_len: int) -> str:
    """Return the part of the page about one source.

    Args:
        name: of the source.
        files: that it was made of.
        result: what became of them.
        s: the lengths of its training documents.
        seq_len: tokens of the rows that they are packed in.
    """
    rows = [
        ("files", f"{len(files):,}"),
        ("size of the files", f"{sum(file.size for file in files) / 1e6:,.1f} MB"),
        ("documents", f"{result.documents:,}"),
        ("tokens", f"{result.tokens:,}"),
        ("bytes a token", f"{result.text_bytes / result.tokens:.3f}" if result.text_bytes else "tokens were imported"),
        ("documents without tokens, dropped", f"{result.dropped:,}"),
        ("duplicates left out", f"{result.duplicates:,}"),
        ("bad records skipped", f"{result.skipped:,}"),
        ("documents given an eos", f"{result.eos_appended:,}"),
        ("eos ids inside of documents", f"{result.interior_eos:,}"),
        ("documents for training", f"{s.documents:,}"),
        ("tokens for training", f"{s.tokens:,}"),
        ("shortest, median, longest document", f"{s.shortest:,}, {s.median:,}, {s.longest:,} tokens"),
    ]
    planned = "all documents" if s.planned == s.documents else f"a sample of {s.planned:,} documents"
    packing = [
        ("positions used", f"{s.packing_efficiency:.3%}"),
        ("rows of an epoch", f"{s.rows:,}"),
        ("documents longer than a row", f"{s.split:,} ({s.split / s.documents:.2%})"),
        ("fragments of these", f"{s.fragments:,}"),
    ]
    names = "".join(f"<li>{escape(file.public.path)}</li>" for file in files[:FILES])
    more = f"<p>and {len(files) - FILES:,} more</p>" if len(files) > FILES else ""
    return f"""<h2>{escape(name)}</h2>
{table(rows)}
<h3>Tokens of a document</h3>
<img alt="documents by length" src="data:image/png;base64,{picture(s, seq_len)}">
<h3>Packed in rows of {seq_len:,} tokens</h3>
{table(packing)}
<p>By the plan of {planned}.</p>
<h3>Files</h3><ul>{names}</ul>{more}"""


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return an HTML table of two columns."""
    return "<table>" + "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in rows) + "</table>"


def picture(statistics: LengthStatistics, seq_len: int) -> str:
    """Return the histogram of lengths as a PNG in base64."""
    from matplotlib.figure import Figure  # takes 0.3 s to import, and few commands draw

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    lows, counts = zip(*statistics.histogram, strict=True)
    axes.bar(lows, counts, width=lows, align="edge", edgecolor="white")
    axes.axvline(seq_len, color="black", linestyle="--", label=f"a row: {seq_len:,} tokens")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens")
    axes.set_ylabel("documents")
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return b64encode(buffer.getvalue()).decode()

"""`cistron inspect CONFIG`: show a packed batch, as a PNG of its documents and their mask, and as decoded rows."""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch.nn.attention.flex_attention import BlockMask

from ..base import printable
from ..datasets.files import check_writable
from ..datasets.loading import Batch
from ..datasets.tokenizers import Tokenizer
from ..models.attention import DocumentMask, document_block_mask
from ..models.positions import reaches
from ..trainer.build import training_mask
from ..trainer.config import load_config
from ..trainer.errors import ConfigError
from ..trainer.processes import Layout, Terminal, global_batch_size
from ..trainer.start import Launch, open_data, verify
from . import cli
from .support import report_sources, whole_number, writing

STYLES = ("cyan", "yellow", "magenta", "green", "blue", "red")  # of consecutive documents
EMPTY, PARTIAL, FULL = 0, 1, 2


def main(argv: Sequence[str]) -> None:
    """Parse the command line, pack the first rows, and draw them."""
    usage = "cistron inspect FILE [--output PNG] [--rows N] [--decode N] [--section.key value ...]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("packed_batch.png"), help="the picture (default: packed_batch.png)")
    parser.add_argument(
        "--rows", type=whole_number(1, 2**16), default=16, help="rows of the batch in the picture (default: 16)"
    )
    parser.add_argument("--decode", type=whole_number(0, 2**16), default=2, help="rows to decode in the terminal (default: 2)")
    options, others = parser.parse_known_args(argv)
    run(others, options)


def run(argv: Sequence[str], options: argparse.Namespace) -> None:
    """Pack the first rows as training would, hold the contract against them, and show them."""
    if options.output.suffix.lower() != ".png" or not options.output.parent.is_dir():
        raise ConfigError(f"--output {options.output}: must be a .png in a folder that exists")
    check_writable(options.output, "--output", ConfigError)
    cpu = torch.device("cpu")
    launch = Launch(None, cpu)
    config, _ = load_config(argv, "cistron inspect", launch.complaints)
    layout = Layout.resolve(config)
    tokenizer, decoder = launch.parts or verify(config, layout)
    mask = training_mask(config, tokenizer, cpu)
    feed = open_data(config, layout, tokenizer, mask, decoder.vocab_size, batch_size=options.rows).begun(mask)
    feed.loader.close()
    console = Terminal()
    report_sources(console, config, feed.loader, tokenizer, global_batch_size(config, layout))
    batch = feed.first
    if batch is None:
        raise ConfigError(f"--rows {options.rows}: the data ends before so many rows (data.sources.max_epochs)")
    for row in range(min(options.decode, options.rows)):
        console.rule(f"row {batch.rows[row]}")
        console.print(decoded(batch, row, tokenizer))
    with writing(options.output):
        draw_rows(batch, mask, options.output)
    console.print(f"\nwrote {options.output}: {options.rows} rows, and the mask of the row with most documents")


def decoded(batch: Batch, row: int, tokenizer: Tokenizer) -> Text:
    """Return a row as text: a colour for each document, ⏹ where an eos ends one, ⋯ where another row continues it.

    An eos inside of a document is ␃, as its own text may be that of the document or nothing.
    """
    text = Text()
    sequence_ids = batch.sequence_ids[row]
    documents = int(sequence_ids.amax()) + 1
    for document in range(documents):
        ids = batch.tokens[row][sequence_ids == document].tolist()
        ended = document < documents - batch.goes_on[row]
        parts = list_split(ids[:-1] if ended else ids, tokenizer.eos_id)
        for number, part in enumerate(parts):
            text.append("␃" * (number > 0), style="bold reverse")
            text.append(printable(tokenizer.decode(part)), style=STYLES[document % len(STYLES)])
        text.append(f" {'⏹' if ended else '⋯'} {len(ids)} tokens\n", style="bold reverse")
    if padding := int((sequence_ids < 0).sum()):
        text.append(f"{padding} positions of padding", style="dim")
    return text


def list_split(ids: list[int], separator: int) -> list[list[int]]:
    """Return the parts of a list between the places of an id."""
    places = [-1, *(place for place, index in enumerate(ids) if index == separator), len(ids)]
    return [ids[start + 1 : end] for start, end in pairwise(places)]


def draw_rows(batch: Batch, mask: DocumentMask, output: Path) -> None:
    """Write the picture: documents coloured along the rows, and the mask of one row by blocks, per region of a map."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure  # takes 0.3 s to import

    seq_len = batch.tokens.shape[1]
    chosen = int(batch.sequence_ids.amax(1).argmax())
    block_size = max(1, min(128, seq_len // 32))
    row = batch.sequence_ids[chosen : chosen + 1]
    regions = [document_block_mask(row, mask.causal, block_size, reach=reach) for reach in reaches(mask.attention)]

    ids = batch.sequence_ids.numpy().astype(float)
    shifted = ids + 3 * np.arange(len(ids))[:, None]  # so that neighbours above and below differ too
    colours = np.where(ids < 0, np.nan, shifted % 10)
    palette = mpl.colormaps["tab10"].with_extremes(bad="#eeeeee")
    widths = (1.5, *(1 for _ in regions))
    figure = Figure(figsize=(6 * sum(widths), 6), layout="constrained")
    rows, *panels = figure.subplots(1, len(widths), width_ratios=widths)
    rows.imshow(colours, aspect="auto", interpolation="nearest", cmap=palette, vmin=0, vmax=9)
    used = float((ids >= 0).mean())
    rows.set(title=f"documents in packed rows ({used:.1%} of positions used; padding is grey)", xlabel="position")
    rows.set_yticks(range(len(batch.rows)), [str(r) for r in batch.rows])
    rows.set_ylabel("row of the run")

    palette = mpl.colors.ListedColormap(["white", "#9ecae1", "#08519c"])
    names = ["document mask"] if len(regions) == 1 else ["near pairs", "far pairs"]
    for panel, region, name in zip(panels, regions, names, strict=True):
        panel.imshow(block_states(region).numpy(), cmap=palette, vmin=EMPTY, vmax=FULL, extent=(0, seq_len, seq_len, 0))
        panel.set(title=f"{name} of row {batch.rows[chosen]} in blocks of {block_size}", xlabel="key", ylabel="query")
    handles: list[Any] = [
        mpl.patches.Patch(facecolor=palette(state), edgecolor="grey", label=label)
        for state, label in ((EMPTY, "empty: skipped"), (PARTIAL, "partial: rule evaluated"), (FULL, "full: no rule needed"))
    ]
    panels[0].legend(handles=handles, loc="upper right")
    figure.savefig(output, dpi=120)


def block_states(mask: BlockMask) -> torch.Tensor:
    """Return EMPTY, PARTIAL or FULL for every (query block, key block) of the first row: int64 [blocks, blocks]."""
    states = torch.full(mask.kv_indices.shape[-2:], EMPTY)
    tables = ((mask.kv_num_blocks, mask.kv_indices, PARTIAL), (mask.full_kv_num_blocks, mask.full_kv_indices, FULL))
    for counts, indices, state in tables:
        assert counts is not None
        assert indices is not None
        for query in range(len(states)):
            states[query, indices[0, 0, query, : int(counts[0, 0, query])].long()] = state
    return states


if __name__ == "__main__":
    cli.run("inspect", sys.argv[1:])

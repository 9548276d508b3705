"""The results of `extrapolation.evaluate` for people: tables, and a picture of three panels."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from .continuation import ROUGE
from .measures import LengthResult


def methods_of(results: Sequence[LengthResult]) -> list[str]:
    """Return the names of the methods, in order."""
    return list(dict.fromkeys(result.method for result in results))


def make_tables(results: Sequence[LengthResult], trained: int, score_last: int) -> list[Table]:
    """Return a table for each measure: a row for each method, a column for each length."""
    lengths = sorted({result.length for result in results})
    found = {(result.method, result.length): result for result in results}
    titles = {
        "loss": "loss of all tokens (nats)",
        "last_loss": f"loss of the same last {score_last} tokens (nats)",
        "passkey": "share of pass keys retrieved",
        "bleu": "BLEU of continuations",
        **{name: f"ROUGE-{name.removeprefix('rouge')} of continuations" for name in ROUGE},
    }
    tables = []
    for measure, title in titles.items():
        if not any(f"{result.method}/{measure}/{result.length}" in result.curves() for result in results):
            continue
        table = Table(title=title, title_justify="left")
        table.add_column("method")
        for length in lengths:
            table.add_column(f"{length:,} ({length / trained:.3g}x)", justify="right")
        for method in methods_of(results):
            values = [found[method, length].curves()[f"{method}/{measure}/{length}"] for length in lengths]
            table.add_row(method, *(f"{value:.3f}" for value in values))
        tables.append(table)
    table = Table("method", "settings", title=f"settings at {lengths[-1]:,} tokens", title_justify="left")
    for method in methods_of(results):
        table.add_row(method, found[method, lengths[-1]].settings)
    return [*tables, table]


def draw_curves(results: Sequence[LengthResult], trained: int, score_last: int, output: Path) -> None:
    """Write the picture: loss of the same last tokens by length, loss by position, pass keys by length and depth."""
    from matplotlib.figure import Figure  # takes 0.3 s to import

    methods = methods_of(results)
    lengths = sorted({result.length for result in results})
    depths = sorted({depth for result in results for depth in result.passkey})
    figure = Figure(figsize=(19 if depths else 13, max(6, 0.5 * len(methods))), layout="constrained")
    by_length, by_position, *rest = figure.subplots(1, 3 if depths else 2)
    for number, method in enumerate(methods):
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "label": method}
        rows = sorted((result for result in results if result.method == method), key=lambda result: result.length)
        by_length.plot(lengths, [result.last_loss for result in rows], marker="o", markersize=3, **style)
        stretches = rows[-1].positions
        by_position.plot([(first + last) / 2 for first, last, _ in stretches], [loss for _, _, loss in stretches], **style)
    by_length.set_xscale("log", base=2)
    by_length.set_xticks(lengths, [f"{length:,}" for length in lengths])
    by_length.set(title=f"the same last {score_last} tokens", xlabel="tokens that are seen", ylabel="loss (nats)")
    by_position.set(title=f"documents of {lengths[-1]:,} tokens", xlabel="position", ylabel="loss (nats)")
    for axes in (by_length, by_position):
        axes.axvline(trained, color="grey", linewidth=0.8)
    by_length.legend(fontsize="small")
    if rest:
        # a band for each method, in it a row for each depth
        shares = [
            [result.passkey[depth] for result in sorted(results, key=lambda r: r.length) if result.method == method]
            for method in methods
            for depth in depths
        ]
        (heat,) = rest
        image = heat.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="RdYlGn", interpolation="nearest")
        heat.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        middles = [len(depths) * number + (len(depths) - 1) / 2 for number in range(len(methods))]
        heat.set_yticks(middles, methods)
        for number in range(1, len(methods)):
            heat.axhline(number * len(depths) - 0.5, color="white", linewidth=2)
        heat.set(title=f"pass keys retrieved; rows of a method: depth {depths[0]:g} to {depths[-1]:g}", xlabel="tokens")
        figure.colorbar(image, ax=heat)
    figure.savefig(output, dpi=110)

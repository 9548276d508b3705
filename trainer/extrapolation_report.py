"""The results of `extrapolation.evaluate` for people: a table, and a picture of three panels."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from .extrapolation import Result


def methods_of(results: Sequence[Result]) -> list[str]:
    """Names, in order."""
    return list(dict.fromkeys(result.method for result in results))


def make_table(results: Sequence[Result], trained: int, score_last: int) -> Table:
    """A row for each method: losses and shares of pass keys by length."""
    lengths = sorted({result.length for result in results})
    found = {(result.method, result.length): result for result in results}
    columns = [f"{length:,} ({length / trained:g}x)" for length in lengths]
    table = Table(title=f"trained on {trained:,} tokens; loss in nats", caption="settings: at the longest length")
    table.add_column("method")
    for group in ("loss", f"last {score_last}", *(["pass keys"] if any(r.passkey for r in results) else [])):
        for number, column in enumerate(columns):
            table.add_column(f"{group}\n{column}" if number == 0 else f"\n{column}", justify="right", no_wrap=True)
    names = sorted({name for result in results for name in result.continuation})
    for name in names:
        for column in columns:
            table.add_column(f"{name}\n{column}", justify="right")
    table.add_column("settings")
    for method in methods_of(results):
        row = [found[method, length] for length in lengths]
        cells = [f"{result.loss:.3f}" for result in row] + [f"{result.last_loss:.3f}" for result in row]
        cells += [f"{sum(result.passkey.values()) / len(result.passkey):.2f}" for result in row if result.passkey]
        cells += [f"{result.continuation[name]:.1f}" for name in names for result in row]
        table.add_row(method, *cells, row[-1].settings)
    return table


def draw(results: Sequence[Result], trained: int, score_last: int, output: Path) -> None:
    """Write the picture: loss of the same last tokens by length, loss by position, pass keys by length and depth."""
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

"""The drill's numbers: a file of JSON lines for each part, written at once, and the table of `summary.md` made of them.

    python benchmarks/gpu_summary.py OUT

It needs no torch: `gpu.sh` calls it after every part, so that there is a table of what is known when time runs out.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOST = 60  # characters of a message that a cell of the table has room for


class Numbers:
    """What a part of the drill measured, appended to a file line by line: a part that is cut off loses nothing.

    Args:
        path: of the JSON lines; None: print alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.wrong = path, False

    def __call__(self, name: str, value: float | str | None, unit: str = "", *, wrong: str = "", goal: str = "") -> None:
        """Print and append one number.

        Args:
            name: what was measured.
            value: None where it is not known here.
            unit: of the value.
            wrong: why it cannot be right, which fails the drill; empty: nothing is wrong.
            goal: which goal it misses; the drill does not fail by that.
        """
        self.wrong |= bool(wrong)
        line: dict[str, Any] = {"name": name, "value": value, "unit": unit, "wrong": wrong, "goal": goal}
        print(shown(line), flush=True)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """Leave with status 1 if a number is wrong."""
        sys.exit(1 if self.wrong else 0)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of numbers; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def value_of(path: Path, name: str) -> float | None:
    """Return a number of a part that ran before; None where it is not known."""
    return next((line["value"] for line in read(path) if line["name"] == name), None)


def shown(line: dict[str, Any]) -> str:
    """Return a number as text."""
    value = line["value"]
    text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value or "unknown")
    if isinstance(value, float) and abs(value) >= 1000:
        text = f"{value:,.0f}"
    marks = f" WRONG: {line['wrong']}" if line["wrong"] else f" ({line['goal']})" if line["goal"] else ""
    return f"{line['name']} {text} {line['unit']}".rstrip() + marks


def complaint(log: Path) -> str:
    """Return the last line of a part's log that says something; empty where there is none."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return lines[-1][-LOST:].replace("|", "/") if lines else ""


def table(out: Path) -> tuple[str, bool]:
    """Return the table of all parts that are over, and whether any of them is wrong.

    Args:
        out: folder of the drill, with `parts.tsv` (part, seconds, limit, status) and a log and numbers for each part.
    """
    lines = ["| part | seconds | status | numbers |", "|---|---:|---|---|"]
    wrong = False
    for row in (out / "parts.tsv").read_text().splitlines():
        part, seconds, limit, status = row.split("\t")
        numbers = [shown(line) for line in read(out / f"{part}.jsonl")]
        if status != "ok":
            wrong |= not status.startswith("skipped")
            numbers += [complaint(out / f"{part}.log")] if seconds != "0" else []
        lines.append(f"| {part} | {seconds} of {limit} | {status} | {'; '.join(filter(None, numbers))} |")
    return "\n".join(lines) + "\n", wrong


def main(out: Path, write: Callable[[str], object] = print) -> int:
    """Write `summary.md`, print it, and return 1 where a part is wrong."""
    text, wrong = table(out)
    (out / "summary.md").write_text(text)
    write(text)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

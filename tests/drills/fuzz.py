"""Files of every kind that the program reads, mutated: it reads them or says what is wrong, soon and in little memory.

    python tests/drills/fuzz.py --cases 1000 --seed 7 [--kind toml] [--seconds 60] [--only NUMBER]

A case is a function of kind, seed and number, so that `--only` repeats it, with its traceback. Allowed is that the file
is read or that a `UserError` is raised. Any other exception, 10 s without an end, 1 GiB more memory and the death of
the process are faults: each is printed with its case, and the exit status is 1.

The cases run in a forked child, which notes in shared memory which one it is at. What hangs or dies in native code is
seen by the parent, which goes on behind it in a new child.
"""

import argparse
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from cistron.base import UserError

SECONDS, BYTES = 10.0, 2**30
SHOWN = 20  # faults that are printed
HANG = 3  # exit status of a child whose case did not end
CELL = struct.Struct("<qd")  # case, when it began
RAW = "@raw{}@"  # stands in JSON for what json.dumps does not write
RAW_NUMBERS = ("9" * 50_000, "1e999", "-1e999", "NaN", "Infinity", "-0", "1.5", "1E400", "0.1e-400")
NUMBERS = (-1, 0, 1, 2, 3, 7, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**15, 10**30, 10**99, 0.5, -0.5)
TEXTS = ("", "\0", "2", "../../x", "/dev/zero", "/etc", "~nobody-is-called-so/x", "a" * 5000, "é", "\x1b[31m", "s3://", "byte")
TOKENS = (
    *(
        b"\0" * 9,
        b"\xff" * 9,
        b"\n",
        b"\r",
        b"\xef\xbb\xbf",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b"]]]]",
        b":",
        b",",
        b"=",
        b"\\ud800",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"." * 500, b"a." * 500, b"NaN", b"1e999", b"-", b"9" * 5000, b"\n>", b'"text"'),
)
Mutation = Callable[[random.Random, bytes], bytes]


def mangled(draw: random.Random, data: bytes) -> bytes:
    """Return bytes after one to three flips, cuts, splices, repetitions or insertions."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        at, other = draw.randint(0, len(data)), draw.randint(0, len(data))
        low, high = min(at, other), max(at, other)
        match draw.randrange(7):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:low] + data[high:]
            case 3 if high - low < 10_000:
                data = data[:high] + data[low:high] * draw.choice((1, 1, 50)) + data[high:]
            case 4:
                data = data[:at] + draw.randbytes(draw.randint(1, 40)) + data[at:]
            case 5:
                token = draw.choice(TOKENS)
                data = data[:at] + token + data[at + draw.choice((0, len(token))) :]
            case _:
                numbers = struct.pack("<Q", draw.choice((0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)))
                data = data[:at] + numbers + data[at + 8 :]
    return data


def places(content: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in a JSON, up to the first twenty of a list."""
    yield above
    inside = content.items() if isinstance(content, dict) else enumerate(content[:20]) if isinstance(content, list) else ()
    for key, value in inside:
        yield from places(value, (*above, key))


def changed(draw: random.Random, content: Any, strange: Callable[[random.Random, Any], Any]) -> Any:
    """Return plain values with one to three of them removed, repeated, renamed, moved or replaced by strange ones."""
    content = json.loads(json.dumps(content))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        place = draw.choice([*places(content)])
        if not place:
            return strange(draw, content) if draw.random() < 0.2 else content
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        key: Any = place[-1]
        match draw.randrange(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw.choice((str(key) + "s", str(key).upper(), draw.choice(TEXTS)))] = parent.pop(key)
            case 1:
                parent.append(parent[key])
            case 2:
                parent[key] = [parent[key]]
            case 3:
                parent[key] = {"a": parent[key]}
            case _:
                parent[key] = strange(draw, parent[key])
    return content


def strange_json(draw: random.Random, value: Any) -> Any:
    """Return what a JSON may hold in place of a value."""
    if isinstance(value, int) and draw.random() < 0.3:
        return value + draw.choice((-1, 1, 2**32, -(2**31)))
    match draw.randrange(7):
        case 0:
            return draw.choice(NUMBERS)
        case 1:
            return RAW.format(draw.randrange(len(RAW_NUMBERS)))
        case 2:
            return draw.choice((*TEXTS, "\ud800", str(value)))
        case 3:
            return draw.choice(([], {}, None, True, False, [None], {"": 0}, [[[]]]))
        case 4:
            return [draw.choice(NUMBERS)] * draw.choice((1, 1000))
        case 5:
            return json.loads("[" * 100 + "]" * 100)
        case _:
            return -value if isinstance(value, (int, float)) else [value, value]


def json_file(draw: random.Random, data: bytes) -> bytes:
    """Return a JSON with other values, or with other bytes."""
    if draw.random() < 0.3:
        return mangled(draw, data)
    text = json.dumps(changed(draw, json.loads(data), strange_json), indent=draw.choice((None, 1)))
    for number, raw in enumerate(RAW_NUMBERS):
        text = text.replace(f'"{RAW.format(number)}"', raw)
    if draw.random() < 0.05 and text.startswith("{"):
        text = text[:-1].rstrip() + ", " + text[1:]  # every key twice
    return text.encode()


def strange_toml(draw: random.Random, value: Any) -> Any:
    """Return what a TOML may hold in place of a value."""
    found = strange_json(draw, value)
    if found is None or (isinstance(found, str) and ("@raw" in found or "\ud800" in found)):
        return draw.choice((float("nan"), float("inf"), 1e30, 10**15, 8e11, 1e-300))
    return found


def toml_file(draw: random.Random, data: bytes) -> bytes:
    """Return a TOML with other values, or with other bytes."""
    if draw.random() < 0.4:
        return mangled(draw, data)
    try:
        content = changed(draw, tomllib.loads(data.decode()), strange_toml)
        return tomli_w.dumps(content if isinstance(content, dict) else {"a": content}).encode()
    except (TypeError, ValueError, RecursionError):  # a null, half a surrogate pair
        return mangled(draw, data)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        folder: of whole files, which every case begins from.
        files: paths in it of those that are mutated, and how.
        read: reads what a copy of the folder holds.
    """

    folder: Path
    files: Mapping[str, Mutation]
    read: Callable[[Path], object]
    originals: dict[str, bytes] = field(default_factory=dict)

    def case(self, draw: random.Random, scratch: Path) -> str:
        """Mutate a file in a copy of the folder and read it; returns what came of it."""
        name = draw.choice([*self.files])
        original = self.originals.setdefault(name, (self.folder / name).read_bytes())
        (scratch / name).write_bytes(self.files[name](draw, original))
        try:
            self.read(scratch)
        except UserError as error:
            str(error).encode(errors="backslashreplace")
            return type(error).__name__
        finally:
            (scratch / name).write_bytes(original)
        return "read"


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass
class Findings:
    """What came of the cases of a kind: how many ended how, and a line for each fault."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def run_kind(name: str, kind: Kind, seed: int, cases: range, seconds: float) -> Findings:
    """Run cases of a kind in children, each in a copy of its folder, until all are done or the time is over."""
    found, end = Findings(), time.monotonic() + seconds
    number, repeated = cases.start, -1
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch, mmap.mmap(-1, CELL.size) as cell:
        while number < cases.stop and time.monotonic() < end:
            folder, report = Path(scratch) / "work", Path(scratch) / "report"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kind.folder, folder)
            report.unlink(missing_ok=True)
            CELL.pack_into(cell, 0, number, time.monotonic())
            child = os.fork()
            if not child:
                child_main(name, kind, seed, range(number, cases.stop), end, folder, report, cell)
            status = None
            while status is None:
                done, code = os.waitpid(child, os.WNOHANG)
                at, began = CELL.unpack_from(cell)
                if done:
                    status = os.waitstatus_to_exitcode(code)
                elif began and time.monotonic() - began > SECONDS + 2 and CELL.unpack_from(cell) == (at, began):
                    # neither half written nor zeroed, which `pack_into` does first: a slow machine stops it there
                    # the alarm in the child was not heard
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    status = HANG
                else:
                    time.sleep(0.02)
            for line in report.read_text().splitlines() if report.exists() else []:
                outcome, told = json.loads(line)
                found.outcomes[outcome] += 1
                found.faults += [told] if told else []
            if status == 0:
                break
            at, _ = CELL.unpack_from(cell)
            if status == HANG and at != repeated:  # a machine may stand still: only twice is a hang
                number = repeated = at
                continue
            if status < 0 or status == HANG:
                outcome = "hang" if status == HANG else f"killed by {signal.Signals(-status).name}"
                found.outcomes[outcome] += 1
                found.faults.append(f"--kind {name} --seed {seed} --only {at}: {outcome}")
            number = at + 1
    return found


def child_main(name: str, kind: Kind, seed: int, cases: range, end: float, folder: Path, report: Path, cell: mmap.mmap) -> None:
    """Run cases, writing a line about each, until one takes too much memory; end this child."""
    status = 1
    try:
        limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + BYTES
        with report.open("w") as out:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust announces its panics there
            for number in cases:
                if time.monotonic() > end:
                    break
                CELL.pack_into(cell, 0, number, time.monotonic())
                outcome, told = one(name, kind, seed, number, folder)
                if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > limit:
                    outcome, told = "memory", f"--kind {name} --seed {seed} --only {number}: more than 1 GiB"
                if outcome == "hang":
                    status = HANG
                    break
                print(json.dumps([outcome, told]), file=out, flush=bool(told))
                if outcome == "memory":
                    break
            else:
                status = 0
            if time.monotonic() > end and status != HANG:
                status = 0
    finally:
        os._exit(status)


class Hang(BaseException):
    """A case has not ended in time."""


def one(name: str, kind: Kind, seed: int, number: int, folder: Path) -> tuple[str, str]:
    """Run a case; returns its outcome and, of a fault, a line that says how to repeat it."""

    def ring(*_: object) -> None:
        raise Hang

    draw = random.Random(f"{name} {seed} {number}")
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    repeat = f"--kind {name} --seed {seed} --only {number}"
    try:
        return kind.case(draw, folder), ""
    except Hang:
        return "hang", ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"traceback {type(error).__name__}", f"{repeat}: {type(error).__name__}: {str(error)[:200]!r} {innermost()}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def innermost() -> str:
    """Return the innermost frame of the package that the present exception came through."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "/drills/" not in frame.filename and "site-packages" not in frame.filename] or frames
    return f"in {ours[-1].name} ({Path(ours[-1].filename).name}:{ours[-1].lineno})"


def main() -> int:
    """Run the cases of the command line, print a table, return the exit status."""
    from cistron.tests.drills.fuzzed_kinds import make_kinds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each kind (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=1e9, help="of each kind at most")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one case here, with its traceback")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        kinds = make_kinds(Path(folder), options.kind)
        if options.only is not None:
            for name, kind in kinds.items():
                print(f"{name}: {kind.case(random.Random(f'{name} {options.seed} {options.only}'), kind.folder)}")
            return 0
        faults = []
        for name, kind in kinds.items():
            began = time.monotonic()
            found = run_kind(name, kind, options.seed, range(options.first, options.first + options.cases), options.seconds)
            counts = ", ".join(f"{count:,} {outcome}" for outcome, count in found.outcomes.most_common())
            print(f"{name:12} {sum(found.outcomes.values()):8,} in {time.monotonic() - began:6.1f} s: {counts}", flush=True)
            print(*found.faults[:SHOWN], sep="\n", end="\n" if found.faults else "", flush=True)
            faults += found.faults
    print(f"{len(faults)} fault(s)")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

"""Part `disk`: what is written into the dump folder comes back, and how fast."""

import os
import time
from pathlib import Path

import numpy as np

from .examination import Examination

CHUNK = 2**22  # bytes at once
LEAST = 100e6  # bytes/s: at less, the 96 GB of an 8B model's checkpoint take 16 minutes


def examine(e: Examination) -> None:
    """Write a file of this rank's own, read it back past the cache where Linux can, and remove it."""
    size = 2**28 if e.on_gpu else 2**26
    folder = Path(e.config.job.dump_folder)
    path = folder / f"{e.host}-{e.world.rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(e, path, size)
    except OSError as error:
        e.find("write", "wrong", compared_with=f"{folder.parent}: {error.strerror or error}")
    finally:
        path.unlink(missing_ok=True)


def write(e: Examination, path: Path, size: int) -> None:
    """Time writing until it is on the disk, and reading. Raises OSError."""
    chunk = np.random.default_rng(0).integers(256, size=CHUNK, dtype=np.uint8).tobytes()
    ranks = f"by {e.world.layout.world_size} process(es) at once"
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(size // CHUNK):
            if (written := file.write(chunk)) != CHUNK:
                raise OSError(f"{written} of {CHUNK} bytes were written: no space is left")
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rate = size / (time.perf_counter() - started) / 1e6
    e.at_least("write", rate, LEAST / 1e6, "MB/s", f"{size >> 20} MiB to {path.parent.parent}, with fsync, {ranks}")
    started, same = time.perf_counter(), True
    with path.open("rb", buffering=0) as file:
        while part := file.read(CHUNK):
            same &= part == chunk
    rate = size / (time.perf_counter() - started) / 1e6
    if not same:
        e.find("read", "wrong", rate, "MB/s", "other bytes than were written")
    else:
        e.at_least("read", rate, LEAST / 1e6, "MB/s", f"the same bytes, {ranks}")

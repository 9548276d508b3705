"""A folder that appears whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .storage import CheckpointError


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to be filled, which takes its name, and the place of what had it, when the block ends well.

    A block that fails, a full disk included, leaves `out` as it was; one that is killed leaves `<out>.partial`, which the next
    one removes, or, killed between the two renames that replace an older `out`, that one as `<out>.former`.

    Raises:
        CheckpointError: it cannot be written: what the system said of which file.
    """
    out = out.absolute()
    partial, former = (out.with_name(f"{out.name}.{state}") for state in ("partial", "former"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            shutil.rmtree(former, ignore_errors=True)
            out.rename(former)
        partial.rename(out)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise CheckpointError(f"{out}: not written: {error.strerror or error}{where}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)

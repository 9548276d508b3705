"""`cistron train --config x.toml [--section.key value ...]`."""

import sys
from collections.abc import Sequence

from ..trainer.failures import run_command
from ..trainer.train import run


def main(argv: Sequence[str]) -> None:
    """Train on this process alone; torchrun starts `cistron.trainer.train` instead."""
    run_command(lambda: run(argv))


if __name__ == "__main__":
    main(sys.argv[1:])

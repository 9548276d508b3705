"""`cistron train --config x.toml [--section.key value ...]`."""

import sys

from ..trainer.train import run as main
from . import cli

__all__ = ["main"]

if __name__ == "__main__":
    cli.run("train", sys.argv[1:])

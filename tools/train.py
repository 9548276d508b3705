"""`cistron train --config x.toml [--section.key value ...]`."""

import sys

from . import cli

if __name__ == "__main__":
    cli.run("train", sys.argv[1:])

"""`cistron train --config x.toml [--section.key value ...]`."""

import sys

from ..trainer.train import main

if __name__ == "__main__":
    main(sys.argv[1:])

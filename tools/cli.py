"""The `cistron` command: the first word names a module of this folder, whose `main` takes the others.

What a command refuses ends the process here, with one message and an exit status.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from .. import __version__

COMMANDS = {
    "train": "train a job, or resume it",
    "check": "verify a job without training: config, eos contract, memory, packing",
    "doctor": "is this machine, cluster and installation fit to train, and how fast is it",
    "inspect": "look at packed rows: a picture of a batch and its documents in the terminal",
    "prepare": "turn raw files, or token files of others, into token shards",
    "generate": "sample text from a checkpoint",
    "embed": "outputs of a model's layers for sequences",
    "evaluate": "how likely a model finds sequences",
    "export": "a checkpoint as a Hugging Face folder",
    "import": "a Hugging Face folder as a checkpoint to train from",
}


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listing = "\n".join(f"  {command.ljust(width)}  {what}" for command, what in COMMANDS.items())
        print(f"usage: cistron COMMAND ...\n\n{listing}\n\ncistron COMMAND --help says more.")
        return
    if name == "--version":
        print(f"cistron {__version__}")
        return
    if name not in COMMANDS:
        print(f"error: no command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    run(name, sys.argv[2:])


def run(name: str, argv: Sequence[str]) -> None:
    """Run a command, whose module is imported only now; end the process with its message where it is refused."""
    try:
        with loading():
            from ..trainer.processes import run_command
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run_command(lambda: import_module(f"cistron.tools.{name}").main(argv))


@contextmanager
def loading() -> Iterator[None]:
    """Say on a terminal what takes the first seconds, until they have passed."""
    said = sys.stderr is not None and sys.stderr.isatty() and "torch" not in sys.modules
    if said:
        print("loading torch ...", end="\r", file=sys.stderr, flush=True)
    yield
    if said:
        print("\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

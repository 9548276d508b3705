"""One file per command of the `cistron` command line, on top of everything else."""

"""Two hosts whose link is cut: both ends say so and leave, and a restart goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="network namespaces need root")
def test_both_hosts_leave_a_cut_link_and_a_restart_ends_with_the_losses_of_an_undisturbed_run() -> None:
    drill = Path(__file__).parent / "two_hosts.py"
    options = [
        "--steps",
        "24",
        "--cut-after",
        "11",
        "--timeout",
        "4",
        "--rendezvous",
        "static",
        "--",
        "--training.seq_len",
        "64",
    ]
    done = subprocess.run([sys.executable, str(drill), *options], capture_output=True, text=True, timeout=400, check=False)
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout
    assert done.stdout.count("with the other processes failed: ") == 2

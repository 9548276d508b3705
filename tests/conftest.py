"""One thread per process, in pytest's own and in all that the tests start: two test workers and their ranks share two cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of compilers imports torch once more, 3 s, in every process

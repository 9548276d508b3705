#!/usr/bin/env bash
# Train shipped configurations on a pretended H200: the real trainer, Inductor, Triton and ptxas, and no kernel launched.
#
#   tests/drills/pretended_gpu/run.sh                               makes an environment: 6 GB, some minutes
#   CISTRON_VENV=/path/to/venv tests/drills/pretended_gpu/run.sh    takes one that has torch 2.11 for CUDA and the extra [dev]
#   ... run.sh --list                                               the cases
#   ... run.sh --only llama3_1b,flex --only TP                      some of them
#
# Needs a C compiler and Linux, and no GPU. Exits 1 where an expectation does not hold, and names it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$here/../lowest_environment.sh"
python - "$lowest" <<'PYTHON'
import sys, torch
if not (torch.__version__.startswith(sys.argv[1] + ".") and torch.version.cuda):
    sys.exit(f"torch {torch.__version__} in {sys.prefix}: must be {sys.argv[1]}, built for CUDA")
PYTHON

mkdir "$work/driver"
cc -shared -fPIC -o "$work/runtime.so" "$here/runtime.c"
cc -shared -fPIC -o "$work/driver/libcuda.so.1" "$here/driver.c"
export TORCHINDUCTOR_COMPILE_THREADS=1
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
LD_PRELOAD=$work/runtime.so LD_LIBRARY_PATH=$work/driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    python -m cistron.tests.drills.pretended_gpu.drill "$@"

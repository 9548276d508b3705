#!/usr/bin/env bash
# Tests that stand on what torch changes between releases, with the lowest torch that pyproject.toml allows.
#
#   tests/drills/lowest_torch.sh                            makes an environment: gigabytes, some minutes
#   CISTRON_VENV=/path/to/venv tests/drills/lowest_torch.sh   takes one that has torch 2.11 and the extra [dev] already
#
# Models, layouts (compiled and not), precision, checkpoints, optimizers, float8; then one training for each parallel
# dimension by the command line, compiled by Inductor and not. Exits 1 where anything fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
lowest=2.11

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${CISTRON_VENV:-}" ]; then
    CISTRON_VENV=$work/venv
    python3 -m venv "$CISTRON_VENV"
    "$CISTRON_VENV/bin/pip" install --quiet "torch==$lowest.*" 'torchao>=0.18' -e '.[dev]'
fi
. "$CISTRON_VENV/bin/activate"
ln -s "$PWD" "$work/cistron"  # the root folder is the package, whatever it is called
export PYTHONPATH=$work OMP_NUM_THREADS=1
found=$(python -c 'import torch; print(torch.__version__)')
case $found in
    "$lowest".*) echo "torch $found" ;;
    *) echo "torch $found in $CISTRON_VENV: must be $lowest" >&2; exit 1 ;;
esac

pytest -n "${CISTRON_WORKERS:-2}" -q tests/models tests/trainer/parallel tests/trainer/optim tests/trainer/checkpoints

for degree in data_parallel_replicate data_parallel_shard context_parallel tensor_parallel; do
    for compiled in false true; do
        echo "== ${degree}_degree = 2, compile.enable = $compiled"
        run=$work/$degree-$compiled
        torchrun --standalone --nproc_per_node 2 -m cistron.trainer.train --config train_configs/debug.toml \
            --parallelism.data_parallel_shard_degree 1 "--parallelism.${degree}_degree" 2 --compile.enable "$compiled" \
            --training.steps 4 --metrics.log_freq 1 --checkpoint.enable false --job.dump_folder "$run" >"$run.log" 2>&1 ||
            { cat "$run.log" >&2; exit 1; }
        python - "$run/metrics.jsonl" <<'PYTHON'
import json, sys
losses = [json.loads(line)["loss"] for line in open(sys.argv[1])]
assert len(losses) == 4 and losses[-1] < losses[0], losses
print("losses", *(f"{loss:.4f}" for loss in losses))
PYTHON
    done
done
echo "torch $found: all passed in $SECONDS s"

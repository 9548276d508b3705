#!/usr/bin/env bash
# Tests that stand on what torch changes between releases, with the lowest torch that pyproject.toml allows.
#
#   tests/drills/lowest_torch.sh                              makes an environment: gigabytes, some minutes
#   CISTRON_VENV=/path/to/venv tests/drills/lowest_torch.sh   takes one that has torch 2.11 and the extra [dev] already
#
# Models, layouts (compiled and not), precision, checkpoints, optimizers, float8, with CISTRON_WORKERS files at a time
# (default: 2; 0: in one process). Then trainings by the command line, one for each parallel dimension and two mixtures,
# compiled by Inductor and not: their losses must be those of one process. Exits 1 where anything fails, after the rest.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. tests/drills/lowest_environment.sh
found=$(python -c 'import torch; print(torch.__version__)')
case $found in
    "$lowest".*) echo "torch $found" ;;
    *) echo "torch $found in $CISTRON_VENV: must be $lowest" >&2; exit 1 ;;
esac

failed=()
pytest -n "${CISTRON_WORKERS:-2}" -q tests/models tests/trainer/parallel tests/trainer/optim tests/trainer/checkpoints ||
    failed+=(pytest)

# train NAME PROCESSES OPTION...: four steps of the debug job. Prints the losses, and compares them with those of `one`.
train() {
    local run=$work/$1 processes=$2
    shift 2
    torchrun --standalone --nproc_per_node "$processes" -m cistron.trainer.train --config train_configs/debug.toml \
        --parallelism.data_parallel_shard_degree 1 "$@" --training.steps 4 --metrics.log_freq 1 \
        --checkpoint.enable false --job.dump_folder "$run" >"$run.log" 2>&1 || { tail -n 60 "$run.log" >&2; return 1; }
    python - "$work/one/metrics.jsonl" "$run/metrics.jsonl" <<'PYTHON'
import json, sys
one, other = ([json.loads(line)["loss"] for line in open(path)] for path in sys.argv[1:])
print("  losses", *(f"{loss:.5f}" for loss in other))
apart = max(abs(a / b - 1) for a, b in zip(other, one, strict=True))
if len(one) != 4 or one[-1] >= one[0] or apart > 1e-4:
    sys.exit(f"four losses, falling, must be those of one process: {apart:.1e} apart")
PYTHON
}

sharded=data_parallel_shard_degree replicated=data_parallel_replicate_degree
context=context_parallel_degree tensor=tensor_parallel_degree
for dimensions in "" $replicated $sharded $context $tensor "$replicated $context" "$sharded $tensor"; do
    for compiled in false true; do
        name=one processes=1 options=()
        for dimension in $dimensions; do
            name=$name-$dimension processes=$((2 * processes)) options+=("--parallelism.$dimension" 2)
        done
        [ "$compiled" = false ] || name=$name-compiled
        echo "== ${dimensions:-one process}, compile.enable = $compiled"
        train "$name" "$processes" "${options[@]}" --compile.enable "$compiled" || failed+=("$name")
    done
done
if [ "${#failed[@]}" -gt 0 ]; then
    echo "torch $found: failed after $SECONDS s: ${failed[*]}" >&2
    exit 1
fi
echo "torch $found: all passed in $SECONDS s"

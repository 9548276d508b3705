#!/usr/bin/env bash
# Train one job on this machine. Further arguments are TOML overrides.
#
#   ./run_train.sh
#   NGPU=4 CONFIG_FILE=train_configs/my.toml ./run_train.sh --training.steps 100
#
# One process needs no launcher, so it runs under plain Python: its exit status is its own and Ctrl-C reaches it directly.
set -euo pipefail

NGPU=${NGPU:-1}
CONFIG_FILE=${CONFIG_FILE:-"$(dirname "$0")/train_configs/debug.toml"}

case "$NGPU" in
    "" | *[!0-9]* | 0*) echo "error: NGPU=$NGPU: must be a number of processes, 1 or more" >&2; exit 2 ;;
esac
# torch's allocator then grows its segments instead of adding others, so that less of a GPU is reserved and cannot be used. The
# older name of the variable, which torch reads first, is left alone too.
if [ -z "${PYTORCH_ALLOC_CONF+set}${PYTORCH_CUDA_ALLOC_CONF+set}" ]; then
    export PYTORCH_ALLOC_CONF=expandable_segments:True
fi

if [ "$NGPU" -eq 1 ]; then
    exec python3 -m cistron.tools.cli train --config "$CONFIG_FILE" "$@"
fi
exec torchrun --standalone --nproc_per_node "$NGPU" -m cistron.trainer.train --config "$CONFIG_FILE" "$@"

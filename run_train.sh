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
if [ "$NGPU" -eq 1 ]; then
    exec python3 -m cistron.trainer.train --config "$CONFIG_FILE" "$@"
fi
exec torchrun --standalone --nproc_per_node "$NGPU" -m cistron.trainer.train --config "$CONFIG_FILE" "$@"

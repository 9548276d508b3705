#!/usr/bin/env bash
# The drill: all that one GPU can answer about Cistron in at most 500 seconds, by one command.
#
#   bash benchmarks/gpu_wheels.sh                  # before, where there is a network: what the GPU machine lacks, into .whl/
#   OUT=drill bash benchmarks/gpu.sh               # on the machine with the GPU; no network is needed
#   DEVICE=cpu OUT=drill bash benchmarks/gpu.sh    # the same parts with small sizes: does everything run?
#   PARTS="rates doctor" bash benchmarks/gpu.sh    # some of them
#
# Each part is a process with a time limit of its own and writes to $OUT at once, so that a hang costs itself alone. After
# $DEADLINE seconds (500) the parts that are left are skipped. Both are times $SLOWER (1, on a CPU 4; more on a busy machine).
# $OUT/summary.md has a line for each part; the status is 1 where something is wrong. A goal that is missed is marked and is
# no fault. What each part answers stands in gpu_drill.py.
#
# $WORK (a temporary folder, removed at the end) takes 30 GB of checkpoints; the compiler's cache lies there too, so that parts
# with the same blocks compile once.
set -uo pipefail
cd "$(dirname "$0")/.."

device=${DEVICE:-cuda}
slower=${SLOWER:-$([ "$device" = cuda ] && echo 1 || echo 4)} # others may use a CPU as well
deadline=${DEADLINE:-$((500 * slower))}
out=${OUT:-outputs/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"

# what the parts call

cistron=("$python" -m cistron.tools.cli)
drill() { "$python" benchmarks/gpu_drill.py "$1" --device "$device" --out "$out" --work "$work"; }
has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }
run_doctor() {
    # collectives need several ranks; speed is measured by parts of their own
    "${cistron[@]}" doctor --parts versions,attention,numerics,rates --json "$out/doctor.json" --part-seconds $((30 * slower))
}
run_torchtitan() {
    local sizes=(--model llama3_1b --rounds 6)
    [ "$device" = cuda ] || sizes=(--model debug --rounds 2 --warmup 1 --rows 2 --seq-len 128)
    "$python" benchmarks/train_speed.py --device "$device" "${sizes[@]}" --only torchtitan cistron \
        --numbers "$out/torchtitan.jsonl"
}
run_float8() {
    has torchao || { echo "torchao is not installed"; return 77; }
    drill float8
}
run_tests() { # the tests that need a GPU and skip themselves elsewhere
    "$python" -m pytest -n0 -q -p no:cacheprovider tests/models/test_cuda.py
}

if [ -n "${THIS_PART:-}" ]; then
    if declare -F "run_$THIS_PART" >/dev/null; then "run_$THIS_PART"; else drill "$THIS_PART"; fi
    exit
fi

# the whole

rm -f "$out"/{parts.tsv,summary.md,doctor.json,kernels.txt} "$out"/*.jsonl "$out"/*.log
touch "$out/parts.tsv"
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT

if compgen -G ".whl/*.whl" >/dev/null && [ "$device" = cuda ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" .whl/*.whl || exit 1
fi
mkdir -p "$work/path"
ln -sfn "$PWD" "$work/path/cistron" # the root folder is the package; this tree is what is measured
export PYTHONPATH="$work/path:$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_CACHE_DIR="$work/inductor" TRITON_CACHE_DIR="$work/triton"
export PYTORCH_ALLOC_CONF=expandable_segments:True
[ "$device" = cuda ] || export CUDA_VISIBLE_DEVICES=""

sampler=""
if [ "$device" = cuda ] && command -v nvidia-smi >/dev/null; then
    nvidia-smi >"$out/nvidia-smi.txt" 2>&1
    # a rate is worth nothing without the clock that it was reached at
    nvidia-smi --query-gpu=timestamp,clocks.sm,power.draw,temperature.gpu,utilization.gpu,memory.used --format=csv,nounits -l 1 \
        >"$out/clocks.csv" 2>&1 &
    sampler=$!
fi

# name seconds: of the drill's parts, by what they are worth for their time; sums to 800 where each takes its limit
parts=(
    "rates 30"
    "doctor 90"
    "speed_1b_flex 70"
    "speed_1b_varlen 50"
    "waits 60"
    "loss_head 40"
    "torchtitan 120"
    "speed_8b_flex 70"
    "resume 80"
    "inference 40"
    "prefetch 45"
    "float8 50"
    "varlen_padding 30"
    "speed_8b_varlen 50"
    "tests 60"
)

# run a part within its limit and what is left of the whole; its status is that of the command, 77 meaning that it cannot run
part() {
    local name=$1 limit=$(($2 * slower)) left=$((deadline - SECONDS)) begun=$SECONDS status what
    if [ "$left" -lt 10 ]; then
        printf '%s\t0\t%s\tskipped: no time left\n' "$name" "$limit" >>"$out/parts.tsv"
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    echo "== $name, at most $limit s, $left s left"
    # this script once more, so that timeout has a process group to end, children of children included
    THIS_PART=$name WORK=$work OUT=$out timeout --kill-after=3 "$limit" bash benchmarks/gpu.sh >"$out/$name.log" 2>&1
    status=$?
    case $status in
    0) what=ok ;;
    77) what="skipped" ;;
    124 | 137) what="cut off after $limit s" ;;
    *) what="failed ($status)" ;;
    esac
    printf '%s\t%s\t%s\t%s\n' "$name" "$((SECONDS - begun))" "$limit" "$what" >>"$out/parts.tsv"
    "$python" benchmarks/gpu_summary.py "$out" >/dev/null
    tail -n 3 "$out/$name.log"
}

for each in "${parts[@]}"; do
    read -r name seconds <<<"$each"
    [ -z "${PARTS:-}" ] || [[ " $PARTS " == *" $name "* ]] || continue
    part "$name" "$seconds"
done
[ -z "$sampler" ] || kill "$sampler"
"$python" benchmarks/gpu_summary.py "$out"

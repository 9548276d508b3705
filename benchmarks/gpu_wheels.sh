#!/usr/bin/env bash
# Fetch the wheels that `gpu.sh` needs on a machine with torch 2.11, Python 3.12 and no network, into the ignored folder .whl/.
#
#   bash benchmarks/gpu_wheels.sh          # where there is a network; then copy the tree with .whl/ to the GPU machine
#
# What such an image has already (torch, numpy, tokenizers, tiktoken, xxhash, safetensors, pyarrow, fsspec, rich, matplotlib,
# tensorboard, hypothesis, pytest) is not among them. pydantic-core must be the version that pydantic pins.
set -euo pipefail
cd "$(dirname "$0")/.."

needed=(pydantic==2.14.4 pydantic-core==2.50.5 pydantic-settings==2.16.3 typing-inspection==0.4.5 python-dotenv==1.2.4
    annotated-types==0.8.0 tomli-w==1.2.0 torchdata==0.11.0 backports.zstd==1.8.0)
compared=(torchao==0.18.0 torchtitan==0.3.0 tyro==1.0.15 spmd_types==0.2.3) # float8, and the comparison
platforms=()
for glibc in 2_39 2_34 2_28 2_27 2_24 2_17; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
done
mkdir -p .whl
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 \
    --abi none "${platforms[@]}" --platform manylinux2014_x86_64 --platform any -d .whl "${needed[@]}" "${compared[@]}"
du -ch .whl/*.whl

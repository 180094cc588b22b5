#!/bin/bash
# What has to be measured on a CUDA device (the point that was left open: no device was at hand), in one go:
#
#   bash Testing/Benchmarks/cuda.sh OUT_FOLDER
#
# Random weights do for timing. Wanted: encode >= 3x upstream's slices/s; 13 objects, both directions, 200 slices >= 6x;
# a click on an encoded slice <= 10 ms median.
set -eu
out=${1:?Name a folder for the results.}
mkdir -p "$out"
python -m SAM2AssistLib bench --model sam2.1-tiny --size 1024 --untrained --device cuda --slices 200 --objects 1,4,13 --json > "$out/tiny_1024.json"
python -m SAM2AssistLib bench --model mini --device cuda --slices 200 --objects 1,4,13 --json > "$out/mini.json"
python Testing/Benchmarks/scaling.py --model mini --device cuda --out "$out/scaling"

#!/usr/bin/env bash
# Spends some minutes of a machine that is lent, or goes on with a run that was begun elsewhere:
#
#   bash examples/lease.sh PACK OUT [--key value ...]
#
# PACK holds `cache` (tokenised texts) and `tokenizer`, OUT gets checkpoints and `final`. Nothing of
# this project needs to be installed there: torch, transformers, accelerate, PyYAML and tqdm are
# enough. docs/TRAINING.md, "On a machine that is lent", says how PACK is made.
set -euo pipefail
pack=$1 out=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
packages=$(mktemp -d)
ln -s "$root" "$packages/diffusiongpt"
export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m diffusiongpt.training train "$root/configs/lease.yaml" \
  --data_dir "$pack" --cache_dir "$pack/cache" --tokenizer "$pack/tokenizer" \
  --output_dir "$out" "$@"

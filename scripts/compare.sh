#!/usr/bin/env bash
# Compares SASNet with every baseline on one corpus, over several seeds: trained on texts alone, and on
# texts and stars. The target is excluded; `python -m sasnet_jax.leakage` measures what including it is
# worth. What is already trained or fitted is reused.
#
#   scripts/compare.sh FOLDER FLAGFILE STORE[,STORE...] [OTHER_STORE...]
#
# FOLDER holds corpus/ and embeddings/STORE; the script adds baselines_exclude/, runs/ and, per kind,
# comparison_KIND/. SASNet trains on STORE (several side by side), baselines on every store.
# SEEDS="0 1 2" chooses the seeds, five by default; KINDS=text or KINDS=stars chooses one kind.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '/^#   /s/^#   //p' "$0" >&2; exit 2; }
work=$(realpath "$1")
flagfile=$(realpath "$2")
IFS=, read -ra names <<<"$3"
read_by_sasnet=()
for name in "${names[@]}"; do read_by_sasnet+=(--store="$work/embeddings/$name"); done
stores=("${read_by_sasnet[@]}")
for name in "${@:4}"; do stores+=(--store="$work/embeddings/$name"); done
cd "$(dirname "$0")/.."
python=${SASNET_VENV:-.venv}/bin/python
seeds=${SEEDS:-0 1 2 3 4}

step() { echo; echo "== $1"; shift; "$@"; }
step "baselines" \
  "$python" -m sasnet_jax.baselines --corpus="$work/corpus" "${stores[@]}" --output="$work/baselines_exclude"
for kind in ${KINDS:-text stars}; do
  case $kind in
    text) flags=() ;;
    stars) flags=(--review_features=text+stars --bias_term) ;;
    *) echo "error: KINDS are text and stars, not $kind" >&2; exit 2 ;;
  esac
  runs=()
  for seed in $seeds; do
    run=$work/runs/${kind}_seed$seed
    step "SASNet, $kind, seed $seed" \
      "$python" -m sasnet_jax.train --flagfile="$flagfile" --corpus="$work/corpus" \
      "${read_by_sasnet[@]}" --target_review=exclude ${flags[@]+"${flags[@]}"} --seed="$seed" --output="$run"
    runs+=(--run="$run")
  done
  step "SASNet, $kind, against the baselines" \
    "$python" -m sasnet_jax.evaluate "${runs[@]}" --baselines="$work/baselines_exclude" \
    --output="$work/comparison_$kind"
done

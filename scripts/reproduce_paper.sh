#!/usr/bin/env bash
# Puts the paper's tables next to ours on one page: chosen reviews from Yelp, 4-bit Phi-3 embeddings,
# Tables 1 and 3, Table 2 with the target excluded and included (the paper may have included it), the report.
# The same command, run again, reuses complete steps and resumes a stopped step.
#
#   scripts/reproduce_paper.sh YELP PHI3 [FOLDER]    YELP: folder with the downloaded Yelp Open Dataset;
#                                                    PHI3: folder of a 4-bit GPTQ Phi-3-mini; needs a GPU
#   scripts/reproduce_paper.sh --small [FOLDER]      the same steps on synthetic reviews and a tiny random
#                                                    Phi-3, without a GPU: minutes, meaningless figures
#
# SEEDS="0 1 2" chooses the seeds of the networks of each kind; five by default.
set -euo pipefail # bash 3.2 (macOS) calls an empty array unbound, hence ${array[@]+...}
usage() { sed -n '/^#   /s/^#   //p' scripts/reproduce_paper.sh >&2; exit 2; }
here() { "${PYTHON:-python3}" -c 'import os, sys; print(os.path.realpath(sys.argv[1]))' "$1"; }
small=
if [ "${1:-}" = --small ]; then
  small=yes work=$(here "${2:-$(dirname "$0")/../work/paper_small}")
elif [ $# -ge 2 ]; then
  yelp=$(here "$1") phi3=$(here "$2") work=$(here "${3:-$(dirname "$0")/../work/paper}")
fi
cd "$(dirname "$0")/.."
[ "${work:-}" ] || usage
if [ ! "$small" ]; then
  dumps=("$yelp"/yelp_dataset.tar "$yelp"/yelp_dataset.tar)
  [ -f "${dumps[0]}" ] || dumps=("$yelp"/yelp_academic_dataset_{review,business}.json)
  for needed in "${dumps[@]}" "$phi3/config.json"; do
    [ -f "$needed" ] || { echo "error: $needed does not exist" >&2; exit 2; }
  done
fi
seeds=${SEEDS:-0 1 2 3 4}
corpus=$work/corpus
# The tests' own code writes the tiny Phi-3, so --small needs the development packages.
scripts/install.sh "requirements${small:+-dev}.txt"
python=${SASNET_VENV:-.venv}/bin/python

if [ "$small" ]; then
  phi3=$work/tiny_phi3
  [ -d "$phi3" ] || "$python" scripts/write_tiny_phi3.py "$phi3"
  reviews=(--synthetic=8000 --choose_users=120 --choose_businesses=60 --choose_seconds=10)
  embed=(--dtype=float32)
  subset=1000
  train=(--epochs=3 --width=32 --feed_forward=64)
else
  reviews=(--reviews="${dumps[0]}" --businesses="${dumps[1]}")
  embed=()
  subset=4000
  train=()
fi

step() { echo; echo "== $1"; shift; "$@"; }
step "1/7 the fewest reviews that give enough users and businesses enough reviews" \
  "$python" -m sasnet_jax.prepare --flagfile=configs/yelp_prepare.flags "${reviews[@]}" --output="$corpus"
stores=()
for kind in instructed plain; do
  step "2/7 Phi-3 embeddings, $kind" \
    "$python" -m embed_torch --flagfile="configs/embed_phi3_$kind.flags" ${embed[@]+"${embed[@]}"} \
    --model="$phi3" --corpus="$corpus" --output="$work/embeddings/phi3_$kind"
  stores+=(--store="$work/embeddings/phi3_$kind")
done
step "2/7 MiniLM embeddings" \
  "$python" -m embed_torch --flagfile=configs/embed_minilm.flags \
  --corpus="$corpus" --output="$work/embeddings/minilm"
stores+=(--store="$work/embeddings/minilm")
step "3/7 Tables 1 and 3" \
  "$python" -m sasnet_jax.embedding_quality --corpus="$corpus" "${stores[@]}" --output="$work/quality"

runs=()
for target_review in exclude include; do
  for seed in $seeds; do
    run=$work/runs/${target_review}_seed$seed
    step "4/7 SASNet, target ${target_review}d, seed $seed" \
      "$python" -m sasnet_jax.train --flagfile=configs/paper.flags --corpus="$corpus" "${stores[0]}" \
      --pooling=attentional --target_review="$target_review" ${train[@]+"${train[@]}"} --seed="$seed" --output="$run"
    step "4/7 ... and its predictions" "$python" -m sasnet_jax.evaluate --run="$run"
    runs+=(--run="$run")
  done
done
step "5/7 baselines, with the target excluded and included" \
  "$python" -m sasnet_jax.leakage --corpus="$corpus" "${stores[@]}" "${runs[@]}" \
  --subset="$subset" --output="$work/leakage"
compared=()
for target_review in exclude include; do
  of=()
  for seed in $seeds; do of+=(--run="$work/runs/${target_review}_seed$seed"); done
  step "6/7 Table 2, target ${target_review}d" \
    "$python" -m sasnet_jax.evaluate "${of[@]}" --baselines="$work/leakage/all_$target_review" \
    --output="$work/table_2_$target_review"
  compared+=(--comparison="$work/table_2_$target_review" --baselines="$work/leakage/all_$target_review")
done
step "7/7 one page" \
  "$python" -m sasnet_jax.report --corpus="$corpus" "${stores[@]}" "${runs[@]}" "${compared[@]}" \
  --baselines="$work/leakage/subset_include" --quality="$work/quality" --leakage="$work/leakage" \
  --title="SASNet: the paper's tables" --output="$work/report.html"

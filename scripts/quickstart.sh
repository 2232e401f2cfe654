#!/usr/bin/env bash
# From nothing to a trained SASNet and its honest score, without a GPU, a download or an account:
# virtual environment, install, synthetic reviews, embeddings, baselines, training, evaluation.
# Writes under work/quickstart (or the folder given); run again, it reuses what is complete.
# Usage: scripts/quickstart.sh [FOLDER [REVIEWS]]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-work/quickstart}
reviews=${2:-12000}
scripts/install.sh requirements.txt
python=${SASNET_VENV:-.venv}/bin/python

step() { echo; echo "== $1"; shift; "$@"; }
step "1/5 a corpus of $reviews synthetic reviews" \
  "$python" -m sasnet_jax.prepare --synthetic="$reviews" --output="$work/corpus"
for encoder in words minilm; do
  step "2/5 embeddings: $encoder" \
    "$python" -m embed_torch --flagfile="configs/embed_$encoder.flags" \
    --corpus="$work/corpus" --output="$work/embeddings/$encoder"
done
step "3/5 baselines" \
  "$python" -m sasnet_jax.baselines \
  --corpus="$work/corpus" --store="$work/embeddings/words" --store="$work/embeddings/minilm" \
  --output="$work/baselines"
step "4/5 SASNet" \
  "$python" -m sasnet_jax.train --flagfile=configs/quickstart.flags \
  --corpus="$work/corpus" --store="$work/embeddings/words" --output="$work/runs/sasnet"
step "5/5 evaluation" \
  "$python" -m sasnet_jax.evaluate --run="$work/runs/sasnet" --baselines="$work/baselines"

"$python" - "$work/corpus/synthetic/truth.json" <<'END'
import json, sys

truth = json.load(open(sys.argv[1]))
print(
    "\nBayesian inference by the rules of this world, which reads the other reviews perfectly, reaches "
    f"{truth['inference']['texts']['accuracy']:.3f},\nand {truth['best_accuracy_knowing_the_latents']:.3f} "
    "is the best possible accuracy for one who knows the world that made them."
)
END
cat <<END

What was written:
  $work/corpus               reviews, users, businesses, split   (docs/formats.md)
  $work/embeddings           one embedding a review: hashed words, and MiniLM
  $work/baselines            baselines.json, predictions/
  $work/runs/sasnet          checkpoints, metrics.jsonl, evaluation.json, predictions.parquet

Next, your own reviews (Yelp, Amazon, CSV, Parquet):
  $python -m sasnet_jax.prepare --reviews=REVIEWS.json.gz --output=work/mine/corpus
END

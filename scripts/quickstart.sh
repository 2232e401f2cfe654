#!/usr/bin/env bash
# From nothing to a trained SASNet and its score, without a GPU, an account or a download besides packages:
# virtual environment, installation, synthetic reviews, embeddings, baselines, training, evaluation.
# Writes into work/quickstart (or the given folder); a second run reuses what is complete.
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
if truth.get("inference"):  # absent from corpora of earlier versions
    inference, hand_made = truth["inference"]["texts"], truth["hand_made"]["texts"]
    print(
        "\nFor comparison, on the same test reviews (accuracy / log-loss):\n"
        f"  {hand_made['accuracy']:.3f} / {hand_made['log_loss']:.3f}  a regression made by hand for this world\n"
        f"  {inference['accuracy']:.3f} / {inference['log_loss']:.3f}  a Bayesian inference by the world's rules, which "
        f"expects {inference['expected_accuracy']:.3f} +- {inference['standard_error']:.3f}"
    )
END
cat <<END

What was written:
  $work/corpus               reviews, users, businesses, split   (docs/formats.md)
  $work/embeddings           one embedding per review: hashed words, and MiniLM
  $work/baselines            baselines.json, predictions/
  $work/runs/sasnet          checkpoints, metrics.jsonl, evaluation.json, predictions.parquet

Next, your own reviews (Yelp, Amazon, CSV, Parquet):
  $python -m sasnet_jax.prepare --reviews=REVIEWS.json.gz --output=work/mine/corpus
END

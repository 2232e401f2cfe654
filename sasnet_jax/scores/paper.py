"""What the paper printed: Tables 1 and 3 by method, Table 2 by the label of the model."""

import re
from typing import Any, NamedTuple

# NMSE_c, NPR_c, NAE_s, score, normalized score: over these ten methods, on its Yelp sample.
TABLE_1: dict[str, tuple[float, float, float, float, float]] = {
    "phi3_instructed/attentional": (0.13, 1.00, 0.00, 0.22, 1.00),
    "phi3_instructed/last": (0.48, 0.76, 0.01, 0.07, 0.84),
    "phi3_instructed/positional": (0.75, 0.99, 0.01, 0.05, 0.82),
    "phi3_instructed/mean": (0.89, 0.97, 0.02, 0.01, 0.78),
    "phi3_instructed/max": (0.78, 0.45, 0.04, -0.10, 0.66),
    "all_minilm": (0.00, 0.10, 0.75, -0.35, 0.38),
    "phi3_plain/max": (0.42, 0.08, 0.65, -0.41, 0.32),
    "phi3_plain/last": (0.45, 0.00, 0.62, -0.42, 0.30),
    "phi3_plain/mean": (0.91, 0.18, 0.99, -0.68, 0.03),
    "phi3_plain/positional": (1.00, 0.18, 1.00, -0.71, 0.00),
}


# F1 and accuracy of 400 test reviews. The paper does not say that the review to be predicted is
# left out of the averages.
TABLE_2: dict[str, tuple[float, float]] = {
    "TF-IDF + SVM": (0.57, 0.57),
    "phi3 + SVM": (0.6925, 0.6925),
    "SASNet": (0.52, 0.52),
}


class PValues(NamedTuple):
    """The p values of the F-test on MSE_c and of the z-test on r_c, as printed."""

    mse: str
    pearson: str


TABLE_3_AGAINST = "phi3_instructed/attentional"
TABLE_3: dict[str, PValues] = {
    "phi3_instructed/last": PValues("<= 1.73e-20", "<= 1e-20"),
    "phi3_instructed/positional": PValues("<= 1e-20", "<= 1e-20"),
    "phi3_plain/max": PValues("<= 1e-20", "<= 0.05"),
    "all_minilm": PValues("<= 1.62e-19", "<= 1e-20"),
}
_PHI3_MINI_WIDTH = 3072


def method_of(manifest: dict[str, Any], pooling: str) -> str | None:
    """The paper's name for a store's method, or None if the paper did not try it.

    An encoder is identified by its name, and Phi-3-mini by its width too, so that a small random
    encoder, as in tests, is not mistaken for it.
    """
    encoder = str(manifest.get("encoder", "")).lower()
    if is_minilm(manifest):
        return "all_minilm" if pooling == "mean" else None
    if not re.search(r"phi-?3", encoder) or manifest["dim"] != _PHI3_MINI_WIDTH:
        return None
    name = f"phi3_{'instructed' if manifest.get('instruction') else 'plain'}/{pooling}"
    return name if name in TABLE_1 else None


def is_minilm(manifest: dict[str, Any]) -> bool:
    """Whether a store's encoder is the paper's sentence embedder, which is also its reference."""
    return "minilm" in str(manifest.get("encoder", "")).lower()

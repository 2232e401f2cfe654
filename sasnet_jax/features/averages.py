"""Both sides' average texts along their discriminants, and the products of these averages.

The reviews of a side are averaged as sum(x) / (n + 4): an entity known by few reviews is taken to
be nearly usual. Letters: k discriminants for users, and as many for businesses.
"""

import numpy as np
from jaxtyping import Float, Float32, Int32

from sasnet_jax.corpus.contexts import Context, Contexts, averaging_matrix

SHRINKAGE = 4.0  # reviews
_PRODUCTS_OF = 16  # discriminants for users, the first ones


def averages(
    contexts: Contexts,
    targets: Int32[np.ndarray, "n"],
    users: Float32[np.ndarray, "reviews k"],
    businesses: Float32[np.ndarray, "reviews k"],
) -> Float32[np.ndarray, "n two_k"]:
    """The average of each target's user, then of its business.

    Args:
      contexts: what may be seen.
      targets: the reviews to predict.
      users: every review's text along the discriminants for users.
      businesses: every review's text along the discriminants for businesses.
    """
    sides = zip(contexts, (users, businesses), strict=True)
    averaged = [_average(context, targets, table) for context, table in sides]
    return np.hstack(averaged).astype(np.float32)


def products(averages: Float32[np.ndarray, "n two_k"]) -> Float32[np.ndarray, "n f"]:
    """Every product of one of the first 16 averages of users with one of businesses."""
    user, business = np.split(averages, 2, axis=1)
    return (user[:, :_PRODUCTS_OF, None] * business[:, None]).reshape(len(averages), -1)


def _average(
    context: Context, targets: Int32[np.ndarray, "n"], table: Float32[np.ndarray, "reviews k"]
) -> Float[np.ndarray, "n k"]:
    size = context.size[targets, None].astype(np.float32)
    return averaging_matrix(context, targets) @ table * (size / (size + SHRINKAGE))

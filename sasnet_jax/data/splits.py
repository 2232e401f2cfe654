"""Who is for training, validation and test (paper section 2.1: 80/10/10 of the users)."""

import hashlib

import numpy as np
import polars as pl

SPLITS = ("train", "validation", "test")
_BOUNDARIES = (0.8, 0.9)  # the paper's fractions


def split_by_user(user_ids: pl.Series, seed: int) -> pl.Series:
    """The split of each user, decided by the seed and the user id alone.

    So it does not move when rows are reordered or other users come and go.

    Args:
      user_ids: str [users].
      seed: any integer.

    Returns:
      A series of SPLITS [users].
    """
    uniform = np.array([_uniform(f"{seed}/{user_id}") for user_id in user_ids])
    choice = np.searchsorted(_BOUNDARIES, uniform, side="right")
    return pl.Series("split", np.array(SPLITS)[choice].tolist(), dtype=pl.String)


SPLIT_SCHEMES = {"by_user": split_by_user}  # --split


def _uniform(name: str) -> float:
    """A number in [0, 1) that depends on nothing but `name`."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64

"""The scale of a corpus's ratings: which are valid, the class of each, and what a network reads.

Ratings are in the data's own unit, float32 [n]. `prepare` takes the scale from its flags and
records it in the corpus, and a run records that of its corpus: nothing else knows it.
"""

import math
import re
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float32, Int8

from sasnet_jax.cli import UserError

STEPS = 11  # evenly spaced ratings from the lowest to the highest: half stars from 0 to 5
_NUMBER = r"(-?\d+(?:\.\d+)?)"


class RatingScale(msgspec.Struct, kw_only=True, frozen=True):
    """Ratings from `low` to `high`, cut into three classes; the defaults are the paper's stars.

    Of 0..5 the 0 is not a rating: there it says that no stars were given.

    Raises:
      ValueError: a class would be impossible; the message names the flags of `prepare`.
    """

    low: float = 0.0
    high: float = 5.0
    bad_up_to: float = 3.0  # the highest rating of the class bad
    excellent_from: float = 5.0  # the lowest rating of the class excellent

    def __post_init__(self):
        """Refuses cuts that leave no rating for a class."""
        if not (math.isfinite(self.low) and self.low < self.high < math.inf):
            raise ValueError(f"--ratings={self} must be LOW..HIGH with LOW below HIGH")
        cuts = np.array([self.bad_up_to, self.excellent_from])
        if not (self.holds(cuts).all() and self.bad_up_to < self.excellent_from):
            least = "<" if self._zero_is_none else "<="
            raise ValueError(
                f"--bad_up_to={self.bad_up_to:g} --excellent_from={self.excellent_from:g} leave a "
                f"class of --ratings={self} without ratings: give {self.low:g} {least} bad_up_to "
                f"< excellent_from <= {self.high:g}"
            )

    @classmethod
    def parse(cls, scale: str, bad_up_to: float, excellent_from: float) -> "RatingScale":
        """The scale "LOW..HIGH" with its cuts.

        Raises:
          ValueError: it is not of this form, or a class would be impossible.
        """
        ends = re.fullmatch(rf"{_NUMBER}\.\.{_NUMBER}", scale)
        if not ends:
            raise ValueError(f"--ratings={scale} must be LOW..HIGH, such as 0..10 or -1..1")
        low, high = map(float, ends.groups())
        return cls(low=low, high=high, bad_up_to=bad_up_to, excellent_from=excellent_from)

    def __str__(self) -> str:
        """LOW..HIGH, as --ratings takes it."""
        return f"{self.low:.12g}..{self.high:.12g}"

    @property
    def bounds(self) -> dict[str, Any]:
        """What a rating must be, as `msgspec.Meta` takes it."""
        return {"gt" if self._zero_is_none else "ge": self.low, "le": self.high}

    @property
    def range(self) -> str:
        """What a rating must be, in words."""
        least = "above" if self._zero_is_none else "at least"
        return f"{least} {self.low:g} and at most {self.high:g}"

    @property
    def is_stars(self) -> bool:
        """Whether a rating is a number of stars out of five."""
        return 0 <= self.low <= 1 and self.high == 5

    @property
    def _zero_is_none(self) -> bool:
        return (self.low, self.high) == (0, 5)

    def holds(self, ratings: np.ndarray) -> Bool[np.ndarray, "n"]:
        """Whether each rating is on the scale."""
        above = ratings > self.low if self._zero_is_none else ratings >= self.low
        return above & (ratings <= self.high)

    def labels(self, ratings: Float32[np.ndarray, "n"], classes: int) -> Int8[np.ndarray, "n"]:
        """The class of each rating: of 3, bad, good and excellent (paper section 2.1); of 5, its
        stars, where half stars round up.

        Raises:
          UserError: 5 classes of ratings that are not stars out of five.
        """
        if classes == 3:
            excellent = ratings >= self.excellent_from
            return (ratings > self.bad_up_to).astype(np.int8) + excellent.astype(np.int8)
        if not self.is_stars:
            raise UserError(
                f"--classes={classes} needs stars out of 5, not {self}: use --classes=3"
            )
        return np.ceil(ratings).astype(np.int8) - 1

    def steps(self, ratings: Float32[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        """The position of each rating on the scale, from 0 to STEPS - 1; half stars are whole."""
        return (ratings - self.low) * ((STEPS - 1) / (self.high - self.low))

    def nearest_steps(self, ratings: Float32[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
        """The step of the scale that is nearest to each rating, as a rating."""
        return self.low + np.round(self.steps(ratings)) * ((self.high - self.low) / (STEPS - 1))

    def shown(self, rating: float) -> str:
        """A rating with its unit: `4.5 ★`, or `8 of 10`."""
        return f"{rating:g} ★" if self.is_stars else f"{rating:g} of {self.high:g}"

    @property
    def cuts(self) -> str:
        """What the classes mean, in words."""
        return f"bad up to {self.bad_up_to:g}, good between, excellent from {self.excellent_from:g}"

"""Draws a world of users and businesses, and writes it as a Yelp-schema dump.

In: a family (`families.py`), a number of reviews and a seed. Out: `review.ndjson`,
`business.ndjson` and `truth.json`, from which the same world can be drawn again
(`true_probabilities`); `ceiling.py` adds what can be inferred from the other reviews.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float, Int

from sasnet_jax.cli import ProgressBar, UserError
from sasnet_jax.files import Record, write_record
from sasnet_jax.synthetic.families import (
    FAMILIES,
    STAR_NOISE,
    USER_BIAS,
    VISIT_NOISE,
    Family,
    FamilyName,
    Shape,
    star_cuts,
)
from sasnet_jax.synthetic.vocabulary import CUISINES

_BUSINESSES_PER_CITY = 400
_HOME_CITY = 0.9  # the probability that a visit is in the user's own city
_CHUNK = 50_000  # reviews made at a time


class Reached(msgspec.Struct, kw_only=True, frozen=True):
    """What a predictor reaches on the test reviews."""

    accuracy: float
    log_loss: float  # nats
    expected_accuracy: float  # by its own probabilities: the mean of each review's greatest
    standard_error: float  # of that mean, over users


class Truth(Record, kw_only=True, frozen=True):
    """truth.json: which world was drawn, and what a model can reach in it."""

    made_by = "python -m sasnet_jax.prepare"
    version = 0
    world: FamilyName = "aspects"  # the only family of earlier versions
    reviews: int
    seed: int
    latents_sum: float | None = None  # by which the same world is recognized
    best_accuracy_knowing_the_latents: float  # but not the noise of the visit
    test_reviews: int = 0  # on which the predictors below are measured
    inference: dict[str, Reached] = {}  # by what it sees
    hand_made: dict[str, Reached] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """The latent truth. Letters: u users, v businesses, k aspects or kinds."""

    taste: Float[np.ndarray, "u k"]
    user_bias: Float[np.ndarray, "u"]
    user_city: Int[np.ndarray, "u"]
    activity: Float[np.ndarray, "u"]  # probability that a review is this user's
    usual: Float[np.ndarray, "c k"]  # quality that a cuisine is known for
    quality: Float[np.ndarray, "v k"]
    business_bias: Float[np.ndarray, "v"]
    business_city: Int[np.ndarray, "v"]
    popularity: Float[np.ndarray, "v"]
    cuisine: Int[np.ndarray, "v"]

    def latents_sum(self) -> float:
        """The sum of the size of all numbers that likings depend on."""
        latents = (self.taste, self.user_bias, self.quality, self.business_bias)
        return float(sum(np.abs(values).sum() for values in latents))


class _Review(msgspec.Struct):
    """A line of `review.ndjson`, in Yelp's schema."""

    review_id: str
    user_id: str
    business_id: str
    stars: float
    text: str
    date: str


def generate(
    reviews: int,
    seed: int,
    folder: Path,
    shape: Shape | None = None,
    world: FamilyName = "aspects",
) -> None:
    """Writes a dump of `reviews` lines, its businesses and `truth.json` into `folder`.

    Args:
      reviews: how many.
      seed: of the world and of its reviews.
      folder: exists.
      shape: how long the histories are; by default as the family has it.
      world: the family.
    """
    family = FAMILIES[world]
    shape = shape or family.shape
    latent = make_world(reviews, seed, shape, world)
    encode = msgspec.json.Encoder().encode_lines
    with (folder / "business.ndjson").open("wb") as file:
        file.write(encode(list(_businesses(latent))))
    expected = 0.0
    with (
        (folder / "review.ndjson").open("wb") as file,
        ProgressBar(total=reviews, desc="writing synthetic reviews", unit="review", delay=5) as bar,
    ):
        for lines, best in _chunks(latent, family, reviews, seed, shape.small_talk):
            file.write(encode(lines))
            expected += best
            bar.update(len(lines))
    truth = Truth(
        world=world,
        reviews=reviews,
        seed=seed,
        latents_sum=latent.latents_sum(),
        best_accuracy_knowing_the_latents=expected / reviews,
    )
    write_record(folder / "truth.json", truth)


def true_probabilities(
    truth: Truth, user_ids: Sequence[str], business_ids: Sequence[str]
) -> Float[np.ndarray, "u v 3"]:
    """P(bad, good, excellent) of a visit of each user to each business.

    They follow from tastes, qualities and biases; only the noise of the visit is not known.

    Args:
      truth: `synthetic/truth.json` of a corpus.
      user_ids: of its `users.parquet`.
      business_ids: of its `businesses.parquet`.

    Raises:
      UserError: what is drawn is another world than the one that the reviews are of.
    """
    family, world = FAMILIES[truth.world], make_world(truth.reviews, truth.seed, world=truth.world)
    if truth.latents_sum and not np.isclose(truth.latents_sum, world.latents_sum(), rtol=1e-9):
        raise UserError(
            f"NumPy {np.__version__} draws another world than the one that truth.json is of: run "
            f"{Truth.made_by} again into a new folder"
        )
    users, businesses = ([int(name[1:]) for name in ids] for ids in (user_ids, business_ids))
    quality, probability = world.quality[businesses], np.empty((len(users), len(businesses), 3))
    for row, user in enumerate(users):
        bias = world.user_bias[user] + world.business_bias[businesses]
        taste = np.broadcast_to(world.taste[user], quality.shape)
        probability[row] = family.class_probabilities(bias, taste, quality)
    return probability


def make_world(
    reviews: int, seed: int, shape: Shape | None = None, world: FamilyName = "aspects"
) -> World:
    """Draws the latent truth for a dump of `reviews` lines."""
    family = FAMILIES[world]
    shape = shape or family.shape
    rng = np.random.default_rng([seed, 0])
    users = max(20, round(reviews / shape.reviews_per_user))
    businesses = max(10, round(reviews / shape.reviews_per_business))
    cities = max(1, businesses // _BUSINESSES_PER_CITY)
    activity = rng.lognormal(sigma=shape.user_spread, size=users)
    cuisine = rng.integers(len(CUISINES), size=businesses)
    usual = family.draw_usual(rng)
    own = family.draw_own(businesses, rng)
    return World(
        taste=family.draw_tastes(users, rng),
        user_bias=rng.normal(scale=USER_BIAS, size=users),
        user_city=rng.integers(cities, size=users),
        activity=activity / activity.sum(),
        usual=usual,
        quality=usual[cuisine] + own,
        business_bias=rng.normal(scale=family.business_bias, size=businesses),
        business_city=np.arange(businesses) % cities,
        popularity=rng.lognormal(sigma=shape.business_spread, size=businesses),
        cuisine=cuisine,
    )


def _businesses(world: World) -> Iterator[dict[str, str]]:
    for index, cuisine in enumerate(world.cuisine):
        name, *categories = CUISINES[cuisine]
        yield {
            "business_id": f"b{index:07d}",
            "name": f"{name} No. {index}",
            "city": f"City {world.business_city[index]}",
            "categories": ", ".join([name, *categories, "Restaurants"]),
        }


def _chunks(
    world: World, family: Family, reviews: int, seed: int, small_talk: float
) -> Iterator[tuple[list[_Review], float]]:
    """Yields reviews, and the expected number right of one who knows the latent truth."""
    cities = range(world.business_city.max() + 1)
    by_city = [np.flatnonzero(world.business_city == city) for city in cities]
    popularity = [np.cumsum(world.popularity[members]) for members in by_city]
    activity = np.cumsum(world.activity)
    for first in range(0, reviews, _CHUNK):
        rng = np.random.default_rng([seed, 1, first])
        n = min(_CHUNK, reviews - first)
        user = np.searchsorted(activity, rng.random(n) * activity[-1], side="right")
        away = rng.random(n) >= _HOME_CITY
        city = np.where(away, rng.integers(len(by_city), size=n), world.user_city[user])
        business = np.empty(n, np.int64)
        for c, (members, weights) in enumerate(zip(by_city, popularity, strict=True)):
            here = city == c
            draws = rng.random(here.sum()) * weights[-1]
            business[here] = members[np.searchsorted(weights, draws, side="right")]
        taste = world.taste[user]
        experience = world.quality[business] + VISIT_NOISE * rng.normal(size=taste.shape)
        bias = world.user_bias[user] + world.business_bias[business]
        liking = bias + family.match(taste, experience) + STAR_NOISE * rng.normal(size=n)
        stars = 1 + np.searchsorted(star_cuts(), liking)
        writer = family.writer(rng, small_talk)
        texts = writer.write(taste, experience, stars, world.cuisine[business])
        best = family.class_probabilities(bias, taste, world.quality[business]).max(axis=1).sum()
        seconds = rng.integers(0, 5 * 365 * 86_400, size=n)
        dates = (np.datetime64("2019-01-01 00:00:00") + seconds).astype(str)
        columns = zip(user.tolist(), business.tolist(), stars.tolist(), texts, dates, strict=True)
        yield (
            [
                _Review(
                    f"r{first + i:08d}",
                    f"u{u:07d}",
                    f"b{b:07d}",
                    float(s),
                    text,
                    date.replace("T", " "),
                )
                for i, (u, b, s, text, date) in enumerate(columns)
            ],
            float(best),
        )

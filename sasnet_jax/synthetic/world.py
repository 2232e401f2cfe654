"""A world of users with tastes and businesses with qualities, written as a Yelp-schema dump.

In: a number of reviews and a seed. Out: `review.ndjson`, `business.ndjson` and `truth.json`, the
best accuracy of a predictor that knows the world; `ceiling.py` adds that of one who knows
only the other reviews.

The world: business b has a quality q[b, k] for each aspect k, user u a taste t[u, k] >= 0 of length
1. A visit is experienced as e[k] = q[b, k] + noise, and liked as
    z = a[u] + c[b] + t[u] . e + noise,
cut into stars at fixed quantiles. The text of a review tells e of the aspects that its user cares
for, and the stars: both share the noise of the visit, so reading the target's own review helps a
model as it does on real reviews. Most of z is the match t . q, which user and business biases
cannot express.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm

from sasnet_jax.cli import ProgressBar
from sasnet_jax.files import Record, write_record
from sasnet_jax.synthetic.text import ASPECTS, CUISINES, ReviewWriter

_BUSINESSES_PER_CITY = 400
_HOME_CITY = 0.9  # the probability that a visit is in the user's own city
USER_BIAS = 0.35  # standard deviations of the parts of z
BUSINESS_BIAS = 0.3
VISIT_NOISE = 0.6
STAR_NOISE = 0.3
NOISE_VARIANCE = VISIT_NOISE**2 + STAR_NOISE**2  # of a visit: tastes have length 1
_STAR_SHARES = (0.12, 0.08, 0.10, 0.25, 0.45)  # of one to five stars
CUISINE_QUALITY = 0.4  # the part of a quality (of standard deviation 1) that a cuisine shares
TASTE_CONCENTRATION = 0.3  # of the Dirichlet distribution of tastes: most users care for little
_CHUNK = 50_000  # reviews made at a time


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How many users and businesses share the reviews, and how long these are.

    Both have long tails, as on Yelp: the numbers are log-normal. By default they are like the
    paper's selection of 75,379 reviews.
    """

    reviews_per_user: float = 8.0  # mean
    reviews_per_business: float = 25.0
    user_spread: float = 1.3  # standard deviation of the logarithm
    business_spread: float = 1.0
    small_talk: float = 0.0  # mean number of sentences per text that tell nothing


YELP = Shape(  # the whole dump: 1.9 M users and 150 k businesses of 6.2 M reviews
    reviews_per_user=3.5,
    reviews_per_business=46.0,
    user_spread=1.5,
    business_spread=1.3,
    small_talk=8.0,
)


class Truth(Record, kw_only=True, frozen=True):
    """truth.json: what a model can reach at best. Accuracies are of the test reviews measured."""

    made_by = "python -m sasnet_jax.prepare"
    version = 0
    reviews: int
    seed: int
    best_accuracy_knowing_the_latents: float  # of one who does not know the noise of the visit
    best_accuracy_knowing_the_other_reviews: float | None = None  # expected, by `ceiling`
    accuracy_of_that_predictor: float | None = None
    log_loss_of_that_predictor: float | None = None  # nats
    measured_on_test_reviews: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """The latent truth. Letters: u users, v businesses, k aspects."""

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


class _Review(msgspec.Struct):
    """A line of `review.ndjson`, in Yelp's schema."""

    review_id: str
    user_id: str
    business_id: str
    stars: float
    text: str
    date: str


def generate(reviews: int, seed: int, folder: Path, shape: Shape = Shape()) -> None:
    """Writes a dump of `reviews` lines, its businesses and `truth.json` into `folder`."""
    world = make_world(reviews, seed, shape)
    encode = msgspec.json.Encoder().encode_lines
    with (folder / "business.ndjson").open("wb") as file:
        file.write(encode(list(_businesses(world))))
    expected = 0.0
    with (
        (folder / "review.ndjson").open("wb") as file,
        ProgressBar(total=reviews, desc="writing synthetic reviews", unit="review", delay=5) as bar,
    ):
        for lines, best in _chunks(world, reviews, seed, shape.small_talk):
            file.write(encode(lines))
            expected += best
            bar.update(len(lines))
    best = expected / reviews
    truth = Truth(reviews=reviews, seed=seed, best_accuracy_knowing_the_latents=best)
    write_record(folder / "truth.json", truth)


def make_world(reviews: int, seed: int, shape: Shape = Shape()) -> World:
    """Draws the latent truth for a dump of `reviews` lines."""
    rng = np.random.default_rng([seed, 0])
    users = max(20, round(reviews / shape.reviews_per_user))
    businesses = max(10, round(reviews / shape.reviews_per_business))
    cities = max(1, businesses // _BUSINESSES_PER_CITY)
    aspects = len(ASPECTS)
    activity = rng.lognormal(sigma=shape.user_spread, size=users)
    cuisine = rng.integers(len(CUISINES), size=businesses)
    usual = rng.normal(scale=CUISINE_QUALITY, size=(len(CUISINES), aspects))
    own = rng.normal(scale=np.sqrt(1 - CUISINE_QUALITY**2), size=(businesses, aspects))
    return World(
        taste=draw_tastes(users, rng),
        user_bias=rng.normal(scale=USER_BIAS, size=users),
        user_city=rng.integers(cities, size=users),
        activity=activity / activity.sum(),
        usual=usual,
        quality=usual[cuisine] + own,
        business_bias=rng.normal(scale=BUSINESS_BIAS, size=businesses),
        business_city=np.arange(businesses) % cities,
        popularity=rng.lognormal(sigma=shape.business_spread, size=businesses),
        cuisine=cuisine,
    )


def draw_tastes(users: int, rng: np.random.Generator) -> Float[np.ndarray, "u k"]:
    """Tastes of length 1, most of them for one to three aspects."""
    taste = rng.dirichlet(np.full(len(ASPECTS), TASTE_CONCENTRATION), users)
    return taste / np.linalg.norm(taste, axis=1, keepdims=True)


def class_probabilities(
    liking: Float[np.ndarray, "n"], variance: float | Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent) of visits whose liking is normal."""
    deviation = np.broadcast_to(np.sqrt(variance), liking.shape)[:, None]
    below = norm.cdf((star_cuts()[2:] - liking[:, None]) / deviation)  # [n, 2]: bad, up to good
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def star_cuts() -> Float[np.ndarray, "4"]:
    """The likings at which the stars change."""
    spread = 1 + USER_BIAS**2 + BUSINESS_BIAS**2 + NOISE_VARIANCE
    return norm.ppf(np.cumsum(_STAR_SHARES)[:-1], scale=np.sqrt(spread))


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
    world: World, reviews: int, seed: int, small_talk: float
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
        liking = bias + (taste * experience).sum(1) + STAR_NOISE * rng.normal(size=n)
        stars = 1 + np.searchsorted(star_cuts(), liking)
        writer = ReviewWriter(rng, small_talk)
        texts = writer.write(taste, experience, stars, world.cuisine[business])
        expected = bias + (taste * world.quality[business]).sum(1)
        best = class_probabilities(expected, NOISE_VARIANCE).max(axis=1).sum()
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

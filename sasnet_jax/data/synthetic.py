"""A world of users with tastes and businesses with qualities, written as a Yelp-schema dump.

In: a number of reviews and a seed. Out: `review.ndjson`, `business.ndjson` and `truth.json`, the
best accuracy that any predictor can reach.

The world: business b has a quality q[b, k] for each aspect k, user u a taste t[u, k] >= 0 of length
1. A visit is experienced as e[k] = q[b, k] + noise, and liked as
    z = a[u] + c[b] + t[u] . e + noise,
cut into stars at fixed quantiles. The text of a review tells e of the aspects that its user cares
for, and the stars: both share the noise of the visit, so reading the target's own review helps a
model as it does on real reviews. Most of z is the match t . q, which user and business biases
cannot express.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm
from tqdm import tqdm

from sasnet_jax.data.synthetic_text import ASPECTS, CUISINES, ReviewWriter
from sasnet_jax.files import write_json

_REVIEWS_PER_USER = 8
_REVIEWS_PER_BUSINESS = 25
_BUSINESSES_PER_CITY = 400
_HOME_CITY = 0.9  # the probability that a visit is in the user's own city
_USER_BIAS = 0.35  # standard deviations of the parts of z
_BUSINESS_BIAS = 0.3
_VISIT_NOISE = 0.6
_STAR_NOISE = 0.3
_STAR_SHARES = (0.12, 0.08, 0.10, 0.25, 0.45)  # of one to five stars
_CHUNK = 50_000  # reviews made at a time


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """The latent truth. Letters: u users, v businesses, k aspects."""

    taste: Float[np.ndarray, "u k"]
    user_bias: Float[np.ndarray, "u"]
    user_city: Int[np.ndarray, "u"]
    activity: Float[np.ndarray, "u"]  # probability that a review is this user's
    quality: Float[np.ndarray, "v k"]
    business_bias: Float[np.ndarray, "v"]
    business_city: Int[np.ndarray, "v"]
    popularity: Float[np.ndarray, "v"]
    cuisine: Int[np.ndarray, "v"]


def generate(reviews: int, seed: int, folder: Path) -> None:
    """Writes a dump of `reviews` lines, its businesses and `truth.json` into `folder`."""
    world = make_world(reviews, np.random.default_rng([seed, 0]))
    with (folder / "business.ndjson").open("w") as file:
        file.writelines(json.dumps(business) + "\n" for business in _businesses(world))
    rng = np.random.default_rng([seed, 1])
    correct = 0.0
    with (
        (folder / "review.ndjson").open("w") as file,
        tqdm(total=reviews, desc="writing synthetic reviews", unit="review", delay=5) as bar,
    ):
        for lines, best in _chunks(world, reviews, rng):
            file.writelines(lines)
            correct += best
            bar.update(len(lines))
    write_json(
        folder / "truth.json",
        {"reviews": reviews, "seed": seed, "best_accuracy_knowing_the_latents": correct / reviews},
    )


def make_world(reviews: int, rng: np.random.Generator) -> World:
    """Draws the latent truth for a dump of `reviews` lines."""
    users = max(20, reviews // _REVIEWS_PER_USER)
    businesses = max(10, reviews // _REVIEWS_PER_BUSINESS)
    cities = max(1, businesses // _BUSINESSES_PER_CITY)
    aspects = len(ASPECTS)
    taste = rng.dirichlet(np.full(aspects, 0.3), users)
    taste /= np.linalg.norm(taste, axis=1, keepdims=True)
    activity = rng.lognormal(sigma=1.2, size=users)
    cuisine = rng.integers(len(CUISINES), size=businesses)
    usual = rng.normal(scale=0.4, size=(len(CUISINES), aspects))  # what a cuisine is known for
    quality = usual[cuisine] + rng.normal(scale=np.sqrt(1 - 0.4**2), size=(businesses, aspects))
    return World(
        taste=taste,
        user_bias=rng.normal(scale=_USER_BIAS, size=users),
        user_city=rng.integers(cities, size=users),
        activity=activity / activity.sum(),
        quality=quality,
        business_bias=rng.normal(scale=_BUSINESS_BIAS, size=businesses),
        business_city=np.arange(businesses) % cities,
        popularity=rng.lognormal(sigma=1.0, size=businesses),
        cuisine=cuisine,
    )


def class_probabilities(liking: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent) given the noiseless liking a + c + t . q of each pair."""
    noise = np.sqrt(_VISIT_NOISE**2 + _STAR_NOISE**2)
    below = norm.cdf((_star_cuts()[2:] - liking[:, None]) / noise)  # [n, 2]: bad, up to good
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def _star_cuts() -> Float[np.ndarray, "4"]:
    spread = 1 + _USER_BIAS**2 + _BUSINESS_BIAS**2 + _VISIT_NOISE**2 + _STAR_NOISE**2
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
    world: World, reviews: int, rng: np.random.Generator
) -> Iterator[tuple[list[str], float]]:
    """Yields NDJSON lines, and the expected number right of one who knows the latent truth."""
    writer = ReviewWriter(rng)
    by_city = [
        np.flatnonzero(world.business_city == c) for c in range(world.business_city.max() + 1)
    ]
    cumulative = [np.cumsum(world.popularity[members]) for members in by_city]
    for first in range(0, reviews, _CHUNK):
        n = min(_CHUNK, reviews - first)
        user = rng.choice(world.activity.size, n, p=world.activity)
        city = np.where(
            rng.random(n) < _HOME_CITY, world.user_city[user], rng.integers(len(by_city), size=n)
        )
        business = np.empty(n, np.int64)
        for c, (members, weights) in enumerate(zip(by_city, cumulative, strict=True)):
            here = city == c
            draws = rng.random(here.sum()) * weights[-1]
            business[here] = members[np.searchsorted(weights, draws, side="right")]
        taste = world.taste[user]
        experience = world.quality[business] + _VISIT_NOISE * rng.normal(size=taste.shape)
        bias = world.user_bias[user] + world.business_bias[business]
        liking = bias + (taste * experience).sum(1) + _STAR_NOISE * rng.normal(size=n)
        stars = 1 + np.searchsorted(_star_cuts(), liking)
        texts = writer.write(taste, experience, stars, world.cuisine[business])
        expected = bias + (taste * world.quality[business]).sum(1)
        best = class_probabilities(expected).max(axis=1).sum()
        seconds = rng.integers(0, 5 * 365 * 86_400, size=n)
        dates = (np.datetime64("2019-01-01T00:00:00") + seconds).astype(str)
        lines = [
            json.dumps(
                {
                    "review_id": f"r{first + i:08d}",
                    "user_id": f"u{user[i]:07d}",
                    "business_id": f"b{business[i]:07d}",
                    "stars": float(stars[i]),
                    "text": texts[i],
                    "date": dates[i].replace("T", " "),
                }
            )
            + "\n"
            for i in range(n)
        ]
        yield lines, float(best)

"""Chooses the fewest reviews that give enough users and businesses enough of them.

In: who reviewed whom. Out: the reviews to keep, by the paper's linear program (section 2.1;
`linear_programs.py`).

The problem is first reduced to users and businesses that overlap so much that they can supply each
other (`_overlapping`), and to those of their reviews that can matter. A choice that
reaches max(N a, M b), the smallest size possible, is optimal. Otherwise a problem that is small
enough is solved as it stands, and a larger one after a wider reduction, as far as time allows. The
bound is always that of the full problem.
"""

import dataclasses
import time
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import scipy.sparse
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import maximum_flow

from sasnet_jax.cli import UserError
from sasnet_jax.prepare.linear_programs import (
    SOLVER,
    Demand,
    Graph,
    Sets,
    choose_reviews,
    choose_sets,
)

_KEPT_PER_DEMAND = 3  # reviews that a reduction keeps for each one that is demanded
_SLACK = 1.2  # of the users and businesses that a large mixed problem may choose from
_MOST_ROUNDS = 50  # of _overlapping and within it, which settle after a few


def graph_of(reviews: pl.DataFrame) -> Graph:
    """The graph of reviews with `user_id, business_id, text_length`, in their order."""
    user, business = (
        reviews[name].rank("dense").to_numpy().astype(np.int64) - 1
        for name in ("user_id", "business_id")
    )
    return Graph(user, business, reviews["text_length"].to_numpy().astype(np.int64))


class Choice(NamedTuple):
    """The reviews to keep, and how good a choice that is (corpus.json)."""

    keep: Bool[np.ndarray, "e"]
    report: dict[str, Any]


def choose(
    graph: Graph,
    demand: Demand,
    *,
    prefer: Literal["longer", "any"],
    exact_below: int,
    seconds: float,
) -> Choice:
    """Chooses reviews; the report has objective, proven lower bound, gap, solver and seconds.

    Args:
      graph: the reviews to choose from.
      demand: what the choice must give.
      prefer: which reviews to prefer among equally small choices.
      exact_below: number of reviews up to which the full problem is solved as it stands.
      seconds: time after which the best choice so far is taken.

    Raises:
      UserError: the demand cannot be met by all reviews together.
    """
    _refuse_infeasible(graph, demand)
    started = time.monotonic()
    deadline = started + seconds
    keep = _choose_from_overlap(graph, demand, prefer, deadline)
    bound = demand.lower_bound
    print(f"  {keep.sum():,} reviews; no choice has fewer than {bound:,}")
    if keep.sum() > bound:
        print(f"  searching for at most about {max(deadline - time.monotonic(), 1):.0f} s more")
        part, exact = np.arange(graph.user.size), graph.user.size <= exact_below
        if not exact:
            wider = _settled(graph, demand, _able(graph, demand), slack=_SLACK)
            part = np.union1d(_reviews_that_matter(graph, wider, demand), np.flatnonzero(keep))
        better, proven = _improve(_part_of(graph, part), demand, prefer, deadline, keep[part])
        keep = np.isin(np.arange(graph.user.size), part[better])
        bound = max(bound, proven) if exact else bound
    report = {
        "demand": dataclasses.asdict(demand),
        "objective": int(keep.sum()),
        "lower_bound": bound,
        "gap": (int(keep.sum()) - bound) / bound,
        "solver": SOLVER,
        "prefer": prefer,
        "seconds": round(time.monotonic() - started, 1),
    }
    return Choice(keep, report)


def _refuse_infeasible(graph: Graph, demand: Demand) -> None:
    """Raises UserError unless all reviews together meet the demand."""
    for entity, wanted, each, flag in (
        (graph.user, demand.users, demand.user_reviews, "users"),
        (graph.business, demand.businesses, demand.business_reviews, "businesses"),
    ):
        able = int((np.bincount(entity) >= each).sum())
        if able < wanted:
            raise UserError(
                f"--choose_{flag}={wanted} cannot be met: only {able} {flag} have at least "
                f"{each} reviews"
            )


def _choose_from_overlap(
    graph: Graph, demand: Demand, prefer: str, deadline: float
) -> Bool[np.ndarray, "e"]:
    """The best choice for the users and businesses that overlap most, or any out of time."""
    sets = _overlapping(graph, demand)
    part = _reviews_that_matter(graph, sets, demand)
    kept = choose_reviews(_part_of(graph, part), sets, demand, prefer, deadline)
    if kept is not None:
        return np.isin(np.arange(graph.user.size), part[kept])
    return _longest_of_each(_ranked(graph, sets), demand)


def _improve(
    graph: Graph, demand: Demand, prefer: str, deadline: float, best: Bool[np.ndarray, "e"]
) -> tuple[Bool[np.ndarray, "e"], int]:
    """Solves the mixed problem for a better choice than `best`; also returns a lower bound."""
    sets, bound = choose_sets(graph, demand, int(best.sum()), deadline)
    kept = choose_reviews(graph, sets, demand, prefer, deadline) if sets else None
    return (best if kept is None or kept.sum() >= best.sum() else kept), bound


def _overlapping(graph: Graph, demand: Demand) -> Sets:
    """As many users and businesses as demanded, that can supply each other if possible.

    It alternates between the users with most reviews of the chosen businesses and the businesses
    with most reviews by the chosen users. Starting from all businesses, the first users are the
    busiest; then both sides settle where users and businesses overlap, which is in cities. Those
    that would still go short are left out, and others take their place.
    """
    able = _able(graph, demand)
    best, least = None, np.inf
    for _ in range(_MOST_ROUNDS):
        sets = _settled(graph, demand, able)
        short = _going_short(graph, sets, demand)
        missing = short.users.sum() + short.businesses.sum()
        if missing < least:
            best, least = sets, missing
        able = Sets(able.users & ~short.users, able.businesses & ~short.businesses)
        enough = able.users.sum() >= demand.users and able.businesses.sum() >= demand.businesses
        if not missing or not enough:
            break
    assert best is not None  # the first round always has one
    return best


def _able(graph: Graph, demand: Demand) -> Sets:
    return Sets(
        np.bincount(graph.user) >= demand.user_reviews,
        np.bincount(graph.business) >= demand.business_reviews,
    )


def _settled(graph: Graph, demand: Demand, able: Sets, slack: float = 1.0) -> Sets:
    """Those of the `able` that overlap most; `slack` times as many as demanded."""
    users, businesses = np.zeros_like(able.users), able.businesses
    for _ in range(_MOST_ROUNDS):
        before = users
        of_users = np.bincount(graph.user[businesses[graph.business]], minlength=users.size)
        users = _largest(of_users, able.users, slack * demand.users)
        of_businesses = np.bincount(graph.business[users[graph.user]], minlength=businesses.size)
        businesses = _largest(of_businesses, able.businesses, slack * demand.businesses)
        if (users == before).all():
            break
    return Sets(users, businesses)


def _largest(
    score: Int[np.ndarray, "n"], able: Bool[np.ndarray, "n"], count: float
) -> Bool[np.ndarray, "n"]:
    order = np.argsort(np.where(able, -score, 1), kind="stable")
    chosen = np.zeros(score.size, bool)
    chosen[order[: round(count)]] = True
    return chosen & able


def _part_of(graph: Graph, rows: Int[np.ndarray, "part"]) -> Graph:
    return Graph(*(column[rows] for column in graph))


def _going_short(graph: Graph, sets: Sets, demand: Demand) -> Sets:
    """Which members of the side that needs fewer reviews the other side alone cannot supply.

    A maximum flow through the reviews that the sets have in common: each user gives up to a,
    each business takes up to b.
    """
    common = np.flatnonzero(sets.users[graph.user] & sets.businesses[graph.business])
    users, user = np.unique(graph.user[common], return_inverse=True)
    businesses, business = np.unique(graph.business[common], return_inverse=True)
    source, sink = users.size + businesses.size, users.size + businesses.size + 1
    of_users, of_businesses = np.arange(users.size), users.size + np.arange(businesses.size)
    tails = [user, np.full(users.size, source), of_businesses]
    heads = [users.size + business, of_users, np.full(businesses.size, sink)]
    capacities = [
        np.ones(common.size),
        np.full(users.size, demand.user_reviews),
        np.full(businesses.size, demand.business_reviews),
    ]
    network = scipy.sparse.csr_matrix(
        (np.concatenate(capacities), (np.concatenate(tails), np.concatenate(heads))),
        shape=(sink + 1, sink + 1),
        dtype=np.int32,
    )
    flow = maximum_flow(network, source, sink).flow
    supplied = Sets(np.zeros_like(sets.users), np.zeros_like(sets.businesses))
    given = flow[source].toarray()[0, of_users] == demand.user_reviews
    taken = -flow[sink].toarray()[0, of_businesses] == demand.business_reviews
    supplied.users[users[given]] = True
    supplied.businesses[businesses[taken]] = True
    if demand.users * demand.user_reviews >= demand.businesses * demand.business_reviews:
        return Sets(np.zeros_like(sets.users), sets.businesses & ~supplied.businesses)
    return Sets(sets.users & ~supplied.users, np.zeros_like(sets.businesses))


def _reviews_that_matter(graph: Graph, sets: Sets, demand: Demand) -> Int[np.ndarray, "part"]:
    """The longest reviews that `sets` have in common, and of each entity as many as demanded."""
    ranked = _ranked(graph, sets)
    matter = ranked.user < _KEPT_PER_DEMAND * demand.user_reviews
    matter |= ranked.business < _KEPT_PER_DEMAND * demand.business_reviews
    return np.flatnonzero((matter & ranked.common) | _longest_of_each(ranked, demand))


class _Ranked(NamedTuple):
    """The place of each review among those of its user and of its business, longest first.

    Reviews that the sets have in common come before others; other entities have no place.
    """

    common: Bool[np.ndarray, "e"]
    user: Float[np.ndarray, "e"]
    business: Float[np.ndarray, "e"]


def _ranked(graph: Graph, sets: Sets) -> _Ranked:
    user_in, business_in = sets.users[graph.user], sets.businesses[graph.business]
    common = user_in & business_in
    of_user, of_business = (
        _rank(entity, ~common, -graph.length) for entity in (graph.user, graph.business)
    )
    return _Ranked(
        common, np.where(user_in, of_user, np.inf), np.where(business_in, of_business, np.inf)
    )


def _longest_of_each(ranked: _Ranked, demand: Demand) -> Bool[np.ndarray, "e"]:
    """As many reviews of each entity as demanded: a choice, though not a small one."""
    return (ranked.user < demand.user_reviews) | (ranked.business < demand.business_reviews)


def _rank(group: Int[np.ndarray, "e"], *keys: np.ndarray) -> Int[np.ndarray, "e"]:
    """The place of each element within its group, by the keys, from 0."""
    order = np.lexsort((*reversed(keys), group))
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(group.size, np.int64)
    rank[order] = np.arange(group.size) - starts[group[order]]
    return rank

"""The linear programs that choose reviews (paper section 2.1), in PuLP, solved by HiGHS.

In: reviews as edges between users and businesses, and a demand. Out: the users and businesses that
shall have enough reviews, or the reviews to keep. For each review e, a user u and a business v:

    min sum x_e   with   sum_{e of u} x_e >= a y_u,   sum u y_u >= N,
                         sum_{e of v} x_e >= b z_v,   sum v z_v >= M,   y and z in {0, 1}:

N users have at least a of the reviews kept, and M businesses at least b. Once y and z are fixed,
the rows are those of a bipartite graph, hence totally unimodular: the linear program in x has a
whole-numbered optimum, and a solver that ends in a vertex finds it.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pulp
from jaxtyping import Bool, Float, Int

from sasnet_jax.cli import UserError

_COST_OF_A_REVIEW = 1e3  # large relative to the solver's tolerances, so that tiny discounts count


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """How many users and businesses must have how many of the chosen reviews."""

    users: int
    user_reviews: int
    businesses: int
    business_reviews: int

    @property
    def lower_bound(self) -> int:
        """The smallest size that any choice can have."""
        return max(self.users * self.user_reviews, self.businesses * self.business_reviews)


class Graph(NamedTuple):
    """Reviews e as edges between users and businesses, both numbered from 0."""

    user: Int[np.ndarray, "e"]
    business: Int[np.ndarray, "e"]
    length: Int[np.ndarray, "e"]  # of the text, characters


class Sets(NamedTuple):
    """The users and businesses that shall have enough reviews: y and z."""

    users: Bool[np.ndarray, "u"]
    businesses: Bool[np.ndarray, "v"]


def choose_sets(
    graph: Graph, demand: Demand, fewer_than: int, deadline: float
) -> tuple[Sets | None, int]:
    """Solves the mixed problem for a choice of fewer than `fewer_than` reviews.

    Returns:
      The sets of the best such choice, or None, and a lower bound of every choice.
    """
    problem = pulp.LpProblem("sets")
    x = _variables(problem, "x", graph.user.size)
    y = _meet_often(problem, x, graph.user, demand.users, demand.user_reviews)
    z = _meet_often(problem, x, graph.business, demand.businesses, demand.business_reviews)
    problem.setObjective(pulp.lpSum(x))
    problem += pulp.lpSum(x) <= fewer_than - 1
    solved = _solve(problem, deadline)
    if problem.sol_status == pulp.LpSolutionInfeasible:
        return None, fewer_than  # proven: the known choice is optimal
    sets = Sets(_values(y) > 0.5, _values(z) > 0.5) if solved else None
    return sets, min(_proven_bound(problem), fewer_than)


def choose_reviews(
    graph: Graph, sets: Sets, demand: Demand, prefer: str, deadline: float
) -> Bool[np.ndarray, "e"] | None:
    """Solves the linear program that is left once the sets are fixed; None if time runs out.

    The preference is a discount of the cost, too small to ever outweigh one review.
    """
    problem = pulp.LpProblem("reviews")
    x = _variables(problem, "x", graph.user.size)
    _meet_always(problem, x, graph.user, sets.users, demand.user_reviews)
    _meet_always(problem, x, graph.business, sets.businesses, demand.business_reviews)
    most = sets.users.sum() * demand.user_reviews + sets.businesses.sum() * demand.business_reviews
    discount = graph.length / (2 * most * graph.length.max()) if prefer == "longer" else 0
    cost = _COST_OF_A_REVIEW * (1 - np.broadcast_to(discount, graph.user.shape))
    problem.setObjective(pulp.lpDot(cost.tolist(), x))
    if not _solve(problem, deadline):
        return None
    keep = _values(x) > 0.5
    users = np.bincount(graph.user[keep], minlength=sets.users.size)
    businesses = np.bincount(graph.business[keep], minlength=sets.businesses.size)
    enough = (users >= demand.user_reviews).sum() >= demand.users
    enough &= (businesses >= demand.business_reviews).sum() >= demand.businesses
    return keep if enough else None


def _variables(
    problem: pulp.LpProblem, name: str, count: int, category: str = pulp.LpContinuous
) -> list[pulp.LpVariable]:
    return [problem.add_variable(f"{name}{i}", 0, 1, category) for i in range(count)]


def _reviews_of_each(
    x: list[pulp.LpVariable], entity: Int[np.ndarray, "e"]
) -> Iterator[list[tuple[pulp.LpVariable, int]]]:
    """For each entity the terms of its sum of x."""
    order = np.argsort(entity, kind="stable")
    for edges in np.split(order, np.cumsum(np.bincount(entity))[:-1]):
        yield [(x[edge], 1) for edge in edges]


def _meet_often(problem, x, entity: Int[np.ndarray, "e"], wanted: int, each: int):
    """Demands `each` reviews of at least `wanted` entities; returns the entities' variables."""
    count = int(entity.max()) + 1
    chosen = _variables(problem, f"entity{problem.numConstraints()}_", count, pulp.LpBinary)
    for variable, terms in zip(chosen, _reviews_of_each(x, entity), strict=True):
        if len(terms) < each:
            variable.upBound = 0
        else:
            expression = pulp.LpAffineExpression([*terms, (variable, -each)])
            problem.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintGE, rhs=0))
    problem += pulp.lpSum(chosen) >= wanted
    return chosen


def _meet_always(problem, x, entity: Int[np.ndarray, "e"], chosen, each: int) -> None:
    """Demands `each` reviews of every chosen entity."""
    for required, terms in zip(chosen, _reviews_of_each(x, entity), strict=False):
        if required:
            expression = pulp.LpAffineExpression(terms)
            problem.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintGE, rhs=each))


def _values(variables: list[pulp.LpVariable]) -> Float[np.ndarray, "n"]:
    return np.array([variable.varValue for variable in variables], float)


SOLVER = pulp.HiGHS.name  # for the report


def _solver(seconds: float, mixed: bool) -> pulp.LpSolver:
    # Interior points, then crossover to a vertex: 17 s where the simplex method needs minutes.
    options = {"gapRel": 0, "gapAbs": 0.5} if mixed else {"solver": "ipm"}
    highs = pulp.HiGHS(msg=False, timeLimit=seconds, **options)
    if not highs.available():
        raise UserError("choosing reviews needs HiGHS, which is not installed: pip install highspy")
    return highs


def _solve(problem: pulp.LpProblem, deadline: float) -> bool:
    """Whether a solution was found before the deadline, though not always the best one."""
    seconds = max(deadline - time.monotonic(), 1.0)
    try:
        problem.solve(_solver(seconds, mixed=bool(problem.isMIP())))
    except IndexError:  # PuLP reads HiGHS's solution even if there is none
        return False
    return problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)


def _proven_bound(problem: pulp.LpProblem) -> int:
    """A lower bound of the whole-numbered optimum, from the solver's own proof."""
    bound = problem.solverModel.getInfo().mip_dual_bound
    return math.ceil(bound - 1e-6) if math.isfinite(bound) else 0

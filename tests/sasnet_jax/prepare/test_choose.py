import json

import numpy as np
import pulp
import pytest
import scipy.sparse
from conftest import assert_one_line_mistake, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from sasnet_jax.cli import UserError
from sasnet_jax.prepare.choose import Demand, Graph, _overlapping, choose


def _graph(seed: int, users: int, businesses: int, edges: int) -> Graph:
    rng = np.random.default_rng(seed)
    pairs = rng.choice(users * businesses, size=min(edges, users * businesses), replace=False)
    pairs = np.unique(np.concatenate([pairs, np.arange(users) * businesses]))  # nobody without
    length = rng.integers(1, 400, size=pairs.size)
    _, business = np.unique(pairs % businesses, return_inverse=True)
    return Graph(pairs // businesses, business, length)


def _meets(graph: Graph, keep: np.ndarray, demand: Demand) -> bool:
    users = np.bincount(graph.user[keep], minlength=1)
    businesses = np.bincount(graph.business[keep], minlength=1)
    enough_users = (users >= demand.user_reviews).sum() >= demand.users
    return enough_users and (businesses >= demand.business_reviews).sum() >= demand.businesses


def _best_by_trying_all(graph: Graph, demand: Demand) -> tuple[int, int] | None:
    """The fewest reviews and, among such choices, the greatest length; no solver involved."""
    edges = graph.user.size
    chosen = (np.arange(1 << edges)[:, None] >> np.arange(edges)) & 1  # [choices, e]
    meets = np.ones(len(chosen), bool)
    for entity, wanted, each in (
        (graph.user, demand.users, demand.user_reviews),
        (graph.business, demand.businesses, demand.business_reviews),
    ):
        counts = chosen @ np.eye(entity.max() + 1, dtype=int)[entity]
        meets &= (counts >= each).sum(axis=1) >= wanted
    if not meets.any():
        return None
    size, length = chosen[meets].sum(axis=1), chosen[meets] @ graph.length
    return size.min(), length[size == size.min()].max()


def _optimum(graph: Graph, demand: Demand) -> int:
    """The full model with whole-numbered x, written down again for SciPy."""
    edges, users, businesses = graph.user.size, graph.user.max() + 1, graph.business.max() + 1
    one = np.ones(edges)
    of_user = scipy.sparse.csr_matrix((one, (graph.user, range(edges))))
    of_business = scipy.sparse.csr_matrix((one, (graph.business, range(edges))))
    eye = scipy.sparse.identity
    none_user, none_business = np.zeros((1, users)), np.zeros((1, businesses))
    rows = scipy.sparse.bmat(
        [
            [of_user, -demand.user_reviews * eye(users), None],
            [of_business, None, -demand.business_reviews * eye(businesses)],
            [np.zeros((1, edges)), none_user + 1, none_business],
            [np.zeros((1, edges)), none_user, none_business + 1],
        ]
    )
    least = np.concatenate(
        [np.zeros(users + businesses), [float(demand.users), float(demand.businesses)]]
    )
    cost = np.concatenate([one, np.zeros(users + businesses)])
    found = milp(
        cost,
        integrality=np.ones(cost.size),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(rows, least),
        options={"mip_rel_gap": 0},
    )
    assert found.success
    return round(found.fun)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    users=st.integers(1, 4),
    businesses=st.integers(1, 4),
    edges=st.integers(1, 12),
    wanted=st.tuples(*[st.integers(1, 3)] * 4),
)
def test_small_choices_are_the_best_of_all(seed, users, businesses, edges, wanted):
    graph = _graph(seed, users, businesses, edges)
    demand = Demand(
        users=wanted[0], user_reviews=wanted[1], businesses=wanted[2], business_reviews=wanted[3]
    )
    best = _best_by_trying_all(graph, demand)
    if best is None:
        with pytest.raises(UserError, match="cannot be met"):
            choose(graph, demand, prefer="longer", exact_below=100, seconds=60.0)
        return
    keep, report = choose(graph, demand, prefer="longer", exact_below=100, seconds=60.0)
    assert _meets(graph, keep, demand)
    assert keep.sum() == best[0]
    users_able = (np.bincount(graph.user) >= demand.user_reviews).sum()
    businesses_able = (np.bincount(graph.business) >= demand.business_reviews).sum()
    if (users_able, businesses_able) == (demand.users, demand.businesses):  # the sets are given
        assert graph.length[keep].sum() == best[1]
    assert report["objective"] == report["lower_bound"] == best[0] and report["gap"] == 0


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=[] if s < 3 else pytest.mark.stress) for s in range(6)]
)
def test_the_optimum_is_that_of_an_independent_solver(seed):
    graph = _graph(seed, users=25, businesses=12, edges=130)
    demand = Demand(users=12, user_reviews=4, businesses=6, business_reviews=8)
    keep, report = choose(graph, demand, prefer="any", exact_below=1000, seconds=120.0)
    assert _meets(graph, keep, demand)
    assert keep.sum() == report["objective"] == report["lower_bound"] == _optimum(graph, demand)


def test_a_choice_one_review_above_the_optimum_is_improved():
    """The users and businesses that overlap most need 21 reviews here, others 20."""
    graph = _graph(1, users=12, businesses=8, edges=45)
    demand = Demand(users=6, user_reviews=3, businesses=4, business_reviews=5)
    keep, report = choose(graph, demand, prefer="any", exact_below=1000, seconds=60.0)
    assert report["lower_bound"] == keep.sum() == _optimum(graph, demand)
    first = choose(graph, demand, prefer="any", exact_below=0, seconds=0.1).report
    assert first["lower_bound"] == demand.lower_bound  # nothing more is proven of a part


@pytest.mark.parametrize("seed", range(3))
def test_a_reduction_meets_the_demand_and_its_bound_holds(seed):
    graph = _graph(seed, users=60, businesses=30, edges=600)
    demand = Demand(users=30, user_reviews=5, businesses=10, business_reviews=9)
    keep, report = choose(graph, demand, prefer="longer", exact_below=0, seconds=60.0)
    assert _meets(graph, keep, demand)
    assert report["lower_bound"] <= _optimum(graph, demand) <= report["objective"] == keep.sum()
    assert report["gap"] == pytest.approx(report["objective"] / report["lower_bound"] - 1)


def _cities(seed: int) -> Graph:
    """Users who review mostly in their own of ten cities, as on Yelp."""
    rng = np.random.default_rng(seed)
    user = (3000 * rng.random(60_000) ** 2).astype(int)
    city = np.where(rng.random(user.size) < 0.95, user % 10, rng.integers(10, size=user.size))
    business = 10 * (100 * rng.random(user.size) ** 2).astype(int) + city
    pairs = np.unique(user * 1000 + business)
    _, user = np.unique(pairs // 1000, return_inverse=True)
    _, business = np.unique(pairs % 1000, return_inverse=True)
    return Graph(user, business, rng.integers(1, 5000, size=pairs.size))


def test_a_reduction_reaches_the_bound_where_cities_overlap():
    graph = _cities(0)
    demand = Demand(users=700, user_reviews=10, businesses=300, business_reviews=20)
    keep, report = choose(graph, demand, prefer="longer", exact_below=0, seconds=100.0)
    assert _meets(graph, keep, demand)
    assert report["objective"] == report["lower_bound"] == 7000
    chance = graph.length.mean() * keep.sum()
    assert graph.length[keep].sum() > 1.2 * chance  # it prefers longer reviews
    any_keep, _ = choose(graph, demand, prefer="any", exact_below=0, seconds=100.0)
    assert any_keep.sum() == 7000 and graph.length[any_keep].sum() < graph.length[keep].sum()


def test_a_reduction_leaves_out_the_business_that_would_go_short():
    """B has the most reviews, but A needs its users too, and nobody needs C's."""
    reviewers = {"A": (0, 1), "B": (0, 1, 2), "C": (2, 3)}
    edges = [(user, "ABC".index(name)) for name, users in reviewers.items() for user in users]
    user, business = np.array(edges).T
    demand = Demand(users=4, user_reviews=1, businesses=2, business_reviews=2)
    sets = _overlapping(Graph(user, business, np.ones(len(edges), int)), demand)
    assert sets.users.all() and sets.businesses.tolist() == [True, False, True]


def test_without_highs_choosing_is_refused(monkeypatch):
    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    graph = _graph(1, users=10, businesses=6, edges=35)
    demand = Demand(users=4, user_reviews=3, businesses=3, business_reviews=4)
    with pytest.raises(UserError, match="pip install highspy"):
        choose(graph, demand, prefer="longer", exact_below=1000, seconds=60.0)


@pytest.mark.parametrize(
    ("users", "businesses", "edges", "demand", "exact_below"),
    [
        (400, 300, 3000, (150, 8, 100, 11), 10_000),  # the mixed problem is not solved in time
        (400, 300, 3000, (150, 8, 100, 11), 0),
        (3000, 2000, 40_000, (1500, 12, 900, 18), 10**6),  # not even its relaxation
    ],
)
def test_out_of_time_gives_the_best_found_with_its_gap(
    users, businesses, edges, demand, exact_below
):
    graph = _graph(3, users, businesses, edges)
    names = ("users", "user_reviews", "businesses", "business_reviews")
    wanted = Demand(**dict(zip(names, demand, strict=True)))
    keep, report = choose(graph, wanted, prefer="any", exact_below=exact_below, seconds=0.5)
    assert _meets(graph, keep, wanted)
    assert wanted.lower_bound <= report["lower_bound"] < report["objective"] == keep.sum()
    assert report["gap"] == pytest.approx(keep.sum() / report["lower_bound"] - 1)
    assert keep.sum() < 1.3 * report["lower_bound"]


def test_the_same_reviews_give_the_same_choice():
    graph = _graph(5, users=100, businesses=60, edges=1500)
    demand = Demand(users=40, user_reviews=6, businesses=25, business_reviews=9)
    choices = [
        choose(graph, demand, prefer="longer", exact_below=5000, seconds=60.0).keep
        for _ in range(2)
    ]
    assert (choices[0] == choices[1]).all()


def test_an_infeasible_demand_says_how_far_it_can_be_met():
    graph = _graph(0, users=30, businesses=10, edges=120)
    able = int((np.bincount(graph.user) >= 4).sum())
    demand = Demand(users=30, user_reviews=4, businesses=1, business_reviews=1)
    with pytest.raises(UserError, match=f"--choose_users=30 cannot be met: only {able} users"):
        choose(graph, demand, prefer="any", exact_below=1000, seconds=60.0)


def test_prepare_chooses_and_reports(tmp_path):
    output = tmp_path / "corpus"
    arguments = ["--synthetic=3000", "--choose_users=40", "--choose_businesses=10"]
    result = run_command("sasnet_jax.prepare", *arguments, f"--output={output}")
    assert result.returncode == 0, result.stderr
    description = json.loads((output / "corpus.json").read_text())
    assert description["choice"]["objective"] == description["steps"][-1]["reviews"] == 400
    assert "gap 0.00%" in result.stdout
    demanding = ["--synthetic=300", "--choose_users=40", "--choose_businesses=10"]
    result = run_command("sasnet_jax.prepare", *demanding, f"--output={tmp_path / 'other'}")
    assert_one_line_mistake(result, "--choose_users=40", "cannot be met")
    assert not (tmp_path / "other").exists()

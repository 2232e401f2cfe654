"""`python -m sasnet_jax.prepare`: raw reviews in, a corpus folder out (docs/formats.md)."""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import polars as pl

from sasnet_jax import __version__, cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus import corpus
from sasnet_jax.corpus.contexts import SIDES, write_grouped
from sasnet_jax.corpus.splits import SPLITS, SplitScheme, split_reviews
from sasnet_jax.prepare import filters
from sasnet_jax.prepare.choose import Demand, choose, graph_of
from sasnet_jax.prepare.filters import FilterMode
from sasnet_jax.prepare.reviews import ReviewDumps, read_businesses
from sasnet_jax.synthetic import ceiling
from sasnet_jax.synthetic.world import generate

World = Literal["aspects", "aspects_noisy", "kinds", "null", "veto"]  # synthetic.families.FAMILIES
# Paper section 2.1, shown beside the counts of Yelp's dump.
PAPER_COUNTS = {
    "read": {"reviews": 6_200_000, "users": 1_900_000, "businesses": 150_000},
    "filtered": {"reviews": 2_787_011, "users": 103_251, "businesses": 61_272},
    "chosen": {"reviews": 75_379, "users": 11_117, "businesses": 3_752},
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Settings of `prepare`."""

    reviews: tuple[str, ...] = setting(
        (), help="dump of reviews: NDJSON, CSV, Parquet, .gz .zip .tar; repeatable", topic="input"
    )
    businesses: str = setting("", help="dump of businesses, or the same archive", topic="input")
    synthetic: int = setting(
        0, help="number of reviews to generate instead of reading any", topic="input", minimum=0
    )
    world: World = setting(
        "aspects", help="rules of the generated reviews (docs/formats.md)", topic="input"
    )
    max_reject_fraction: float = setting(
        0.01,
        help="fraction of malformed lines that is tolerated",
        topic="input",
        minimum=0,
        maximum=1,
    )
    user_column: str = setting("", help="name of the user id", topic="unknown formats")
    business_column: str = setting("", help="name of the business id", topic="unknown formats")
    stars_column: str = setting(
        "", help="name of the stars (0 < stars <= 5)", topic="unknown formats"
    )
    text_column: str = setting("", help="name of the text", topic="unknown formats")
    date_column: str = setting("", help="name of the date (ISO, or epoch)", topic="unknown formats")
    review_id_column: str = setting("", help="name of the review id", topic="unknown formats")
    output: str = setting("", help="corpus folder to write", topic="output", required=True)
    min_reviews_user: int = setting(1, help="reviews a user must have", topic="choosing", minimum=1)
    min_reviews_business: int = setting(
        1, help="reviews a business must have", topic="choosing", minimum=1
    )
    filter: FilterMode = setting(
        "once", help="count on the raw reviews (paper), or to a fixed point", topic="choosing"
    )
    choose_users: int = setting(
        0,
        help="keep the fewest reviews that give so many users enough",
        topic="choosing",
        minimum=0,
    )
    choose_businesses: int = setting(
        0,
        help="keep the fewest reviews that give so many businesses enough",
        topic="choosing",
        minimum=0,
    )
    reviews_per_chosen_user: int = setting(
        10, help="reviews that are enough for a user", topic="choosing", extra=True, minimum=1
    )
    reviews_per_chosen_business: int = setting(
        20, help="reviews that are enough for a business", topic="choosing", extra=True, minimum=1
    )
    prefer: Literal["longer", "any"] = setting(
        "longer", help="among equally many reviews", topic="choosing", extra=True
    )
    exact_below: int = setting(
        5000,
        help="reviews up to which the optimum is sought outright",
        topic="choosing",
        extra=True,
        minimum=0,
    )
    choose_seconds: float = setting(
        300.0,
        help="seconds after which the best choice found is taken",
        topic="choosing",
        extra=True,
        above=0,
    )
    split: SplitScheme = setting("by_user", help="what is held out", topic="split")
    held_out: int = setting(
        3,
        help="reviews of a user for validation, and for test (within_user)",
        topic="split",
        minimum=1,
    )
    seed: int = setting(
        0, help="of the split and of the synthetic reviews", topic="split", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if bool(self.reviews) == bool(self.synthetic):
            raise UserError("give either --reviews=FILE or --synthetic=NUMBER")
        if self.synthetic and _columns(self):
            raise UserError("--synthetic has its own columns: leave out --user_column and the like")
        if self.synthetic and self.businesses:
            raise UserError("--synthetic generates its own businesses: leave out --businesses")
        if self.world != "aspects" and not self.synthetic:
            raise UserError(f"--world={self.world} is of generated reviews: add --synthetic=NUMBER")
        if bool(self.choose_users) != bool(self.choose_businesses):
            raise UserError("give both --choose_users and --choose_businesses, or neither")


def run(config: PrepareConfig) -> None:
    """Writes the corpus, or finds the same one already there."""
    output = Path(config.output)
    inputs = [("reviews", Path(name)) for name in config.reviews]
    inputs += [("businesses", Path(config.businesses))] if config.businesses else []
    for _, path in inputs:
        if not path.is_file():
            raise UserError(f"{path} does not exist (--reviews, --businesses)")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        _refuse_or_reuse(output, _settings(config, inputs, show_progress=True))
        return
    with ThreadPoolExecutor(1) as background:  # hashing is as long as reading
        settings = background.submit(_settings, config, inputs, show_progress=False)
        try:
            with files.new_folder(output) as folder:
                _fill(folder, config, settings)
        except pl.exceptions.ComputeError as error:  # so polars calls a full device
            if "os error" not in str(error):
                raise
            raise UserError(f"--output={output} cannot be written: {error}") from None
    print(f"corpus written to {output}")


def _settings(
    config: PrepareConfig, inputs: list[tuple[str, Path]], show_progress: bool
) -> dict[str, Any]:
    """What a corpus is made of and how; wherever the files lie."""
    described = [
        {
            "role": role,
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": files.file_sha256(path, show_progress),
        }
        for role, path in inputs
    ]
    settings = dataclasses.asdict(config)
    for name in ("output", "reviews", "businesses"):
        del settings[name]
    return {"inputs": described, **settings}


def _fill(folder: Path, config: PrepareConfig, settings: Future[dict[str, Any]]) -> None:
    """Raw reviews -> filters -> one review a pair -> choice -> split -> files."""
    review_paths, business_path = _sources(folder, config)
    dumps = ReviewDumps(review_paths, _columns(config))
    for path, name in zip(review_paths, dumps.formats, strict=True):
        print(f"{path.name}: {name}")
    of_yelp = bool(config.reviews) and set(dumps.formats) == {"Yelp"}
    scan = dumps.scan(config.max_reject_fraction)
    _print_rejects(scan.lines, scan.rejects)
    businesses, business_rejects = None, scan.rejects.clear()
    if business_path:
        businesses, business_rejects = read_businesses(business_path, config.max_reject_fraction)
    kept, steps = _filter(scan.reviews, config, of_yelp)
    kept, choice = _choose(kept, config)
    steps += [_count("chosen", kept, of_yelp)] if choice else []
    split, boundaries = split_reviews(kept, config.split, config.seed, config.held_out)

    tables = corpus.tables_of(kept, split, businesses)
    texts = dumps.texts(kept)
    texts_sha256 = corpus.write_reviews(folder / "reviews.parquet", tables["reviews"], texts)
    for name in ("users", "businesses", "categories"):
        tables[name].write_parquet(folder / f"{name}.parquet")
    pl.concat([scan.rejects, business_rejects]).write_ndjson(folder / "rejects.ndjson")
    description = {
        "format_version": corpus.FORMAT_VERSION,
        "program_version": __version__,
        "settings": settings.result(),
        "formats": dumps.formats,
        "texts_sha256": texts_sha256,
        "lines": scan.lines,
        "rejected": _by_reason(scan.rejects),
        "businesses_rejected": _by_reason(business_rejects),
        "steps": steps,
        "choice": choice,
        "split_reviews": {name: int((split == name).sum()) for name in SPLITS},
        "split_boundaries": boundaries,
        "reviews_per": {side: corpus.histogram(tables["reviews"][side]) for side in SIDES},
    }
    files.write_json(folder / "corpus.json", description)
    made = corpus.read_corpus(folder)
    write_grouped(made)
    for name in SPLITS:
        print(f"{name:14}{made.rows(name).size:>12,} reviews")
    if config.synthetic:
        truth = folder / "synthetic" / "truth.json"
        known = files.read_json(truth, "python -m sasnet_jax.prepare")
        known |= ceiling.measure(made, config.synthetic, config.seed, config.world)
        files.write_json(truth, known)


def _sources(folder: Path, config: PrepareConfig) -> tuple[list[Path], Path | None]:
    """The dumps of reviews and of businesses, generated first if so asked."""
    if not config.synthetic:
        business_path = Path(config.businesses) if config.businesses else None
        return [Path(name) for name in config.reviews], business_path
    raw_folder = folder / "synthetic"
    raw_folder.mkdir()
    generate(config.synthetic, config.seed, raw_folder, world=config.world)
    return [raw_folder / "review.ndjson"], raw_folder / "business.ndjson"


def _filter(
    reviews: pl.DataFrame, config: PrepareConfig, of_yelp: bool
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """The reviews that pass the counts, one of each pair, and the counts after each step."""
    steps = [_count("read", reviews, of_yelp)]
    kept = filters.with_enough_reviews(
        reviews, config.min_reviews_user, config.min_reviews_business, config.filter
    )
    steps.append(_count("filtered", kept, of_yelp))
    kept = filters.earliest_of_each_pair(kept)
    steps.append(_count("deduplicated", kept, of_yelp))
    if kept.is_empty():
        raise UserError(
            f"no review is left: of {steps[0]['reviews']} read, {steps[1]['reviews']} passed "
            f"--min_reviews_user={config.min_reviews_user} "
            f"--min_reviews_business={config.min_reviews_business}"
        )
    return kept, steps


def _columns(config: PrepareConfig) -> dict[str, str]:
    """What the dumps call our fields, where it was said."""
    named = {
        "user_id": config.user_column,
        "business_id": config.business_column,
        "stars": config.stars_column,
        "text": config.text_column,
        "date": config.date_column,
        "review_id": config.review_id_column,
    }
    return {field: name for field, name in named.items() if name}


def _choose(
    kept: pl.DataFrame, config: PrepareConfig
) -> tuple[pl.DataFrame, dict[str, Any] | None]:
    """The reviews that the linear programme keeps, and its report; all of them where not asked."""
    if not config.choose_users:
        return kept, None
    print(f"choosing reviews, for at most {config.choose_seconds:g} s of search ...")
    keep, report = choose(
        graph_of(kept),
        Demand(
            users=config.choose_users,
            user_reviews=config.reviews_per_chosen_user,
            businesses=config.choose_businesses,
            business_reviews=config.reviews_per_chosen_business,
        ),
        prefer=config.prefer,
        exact_below=config.exact_below,
        seconds=config.choose_seconds,
    )
    print(
        f"  {report['objective']:,} reviews, no choice has fewer than {report['lower_bound']:,} "
        f"(gap {report['gap']:.2%}), {report['solver']}, {report['seconds']} s"
    )
    return kept.filter(keep), report


def _count(step: str, reviews: pl.DataFrame, of_yelp: bool) -> dict[str, Any]:
    """What is left after a step, printed and for corpus.json."""
    counts = {
        "reviews": reviews.height,
        "users": reviews["user_id"].n_unique(),
        "businesses": reviews["business_id"].n_unique(),
    }
    line = f"{step:14}" + "".join(f"{count:>12,} {name}" for name, count in counts.items())
    paper = PAPER_COUNTS.get(step) if of_yelp else None
    if paper:
        line += "   paper: " + ", ".join(f"{count:,}" for count in paper.values())
    print(line)
    return {"step": step, **counts} | ({"paper": paper} if of_yelp else {})


def _refuse_or_reuse(output: Path, settings: dict[str, Any]) -> None:
    """Says that the corpus is there already, or refuses to touch another one."""
    if not (output / "corpus.json").exists():
        raise UserError(f"--output={output} holds other files: choose a new folder")
    made = files.read_json(output / "corpus.json", "python -m sasnet_jax.prepare")
    if made.get("settings") == settings:
        print(f"corpus {output} is already complete: nothing to do")
        return
    before = made.get("settings", {})
    changed = [name for name in settings if before.get(name) != settings[name]]
    raise UserError(
        f"{output} holds a corpus made with other {', '.join(changed)}: "
        "choose another --output, or remove it"
    )


def _by_reason(rejects: pl.DataFrame) -> dict[str, int]:
    return dict(rejects["reason"].value_counts(sort=True).iter_rows())


def _print_rejects(lines: int, rejects: pl.DataFrame) -> None:
    print(f"{lines:,} lines read, {rejects.height:,} rejected")
    for reason, count in _by_reason(rejects).items():
        print(f"  {count:,} x {reason}")

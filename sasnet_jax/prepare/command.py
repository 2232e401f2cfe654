"""`python -m sasnet_jax.prepare`: raw reviews in, a corpus folder out (docs/formats.md)."""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl

from sasnet_jax import __version__, cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus import corpus
from sasnet_jax.corpus.contexts import SIDES, read_grouped, write_grouped
from sasnet_jax.corpus.corpus import CLASSES, Choice, Corpus, CorpusRecord
from sasnet_jax.corpus.ratings import RatingScale
from sasnet_jax.corpus.splits import SPLITS, SplitScheme, split_reviews
from sasnet_jax.prepare import filters
from sasnet_jax.prepare.archives import ON_DISK
from sasnet_jax.prepare.choose import Demand, choose, graph_of
from sasnet_jax.prepare.filters import FilterMode
from sasnet_jax.prepare.rejects import Rejects
from sasnet_jax.prepare.reviews import ReviewDumps, read_businesses
from sasnet_jax.synthetic import ceiling
from sasnet_jax.synthetic.families import FamilyName
from sasnet_jax.synthetic.world import Truth, generate

_STARS = RatingScale()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Settings of `prepare`."""

    reviews: tuple[str, ...] = setting(
        (), help="dump of reviews: NDJSON, CSV, Parquet, .gz .zip .tar; repeatable", topic="input"
    )
    businesses: str = setting("", help="dump of businesses, or the same archive", topic="input")
    synthetic: int = setting(
        0, help="generate this many reviews instead of reading any", topic="input", minimum=0
    )
    world: FamilyName = setting("aspects", help="rules of generated reviews", topic="input")
    max_reject_fraction: float = setting(
        0.01,
        help="largest tolerated fraction of malformed lines",
        topic="input",
        minimum=0,
        maximum=1,
    )
    user_column: str = setting("", help="column of the user id", topic="unknown formats")
    business_column: str = setting("", help="column of the business id", topic="unknown formats")
    stars_column: str = setting(
        "", help="column of the stars, or another rating", topic="unknown formats"
    )
    text_column: str = setting("", help="column of the text", topic="unknown formats")
    date_column: str = setting(
        "", help="column of the date (ISO 8601 or epoch)", topic="unknown formats"
    )
    review_id_column: str = setting("", help="column of the review id", topic="unknown formats")
    ratings: str = setting(
        str(_STARS), help="LOW..HIGH of the ratings; of 0..5 the 0 is no rating", topic="ratings"
    )
    bad_up_to: float = setting(
        _STARS.bad_up_to, help="highest rating of the class bad", topic="ratings"
    )
    excellent_from: float = setting(
        _STARS.excellent_from,
        help="lowest rating of the class excellent; good is between",
        topic="ratings",
    )
    output: str = setting("", help="corpus folder to write", topic="output", required=True)
    min_reviews_user: int = setting(1, help="fewest reviews per user", topic="choosing", minimum=1)
    min_reviews_business: int = setting(
        1, help="fewest reviews per business", topic="choosing", minimum=1
    )
    filter: FilterMode = setting(
        "once", help="apply the minima once (paper), or until nothing changes", topic="choosing"
    )
    choose_users: int = setting(
        0,
        help="keep the fewest reviews that give this many users enough",
        topic="choosing",
        minimum=0,
    )
    choose_businesses: int = setting(
        0,
        help="keep the fewest reviews that give this many businesses enough",
        topic="choosing",
        minimum=0,
    )
    reviews_per_chosen_user: int = setting(
        10,
        help="number of reviews that is enough for a user",
        topic="choosing",
        extra=True,
        minimum=1,
    )
    reviews_per_chosen_business: int = setting(
        20,
        help="number of reviews that is enough for a business",
        topic="choosing",
        extra=True,
        minimum=1,
    )
    prefer: Literal["longer", "any"] = setting(
        "longer",
        help="which reviews to keep among equally small choices",
        topic="choosing",
        extra=True,
    )
    exact_below: int = setting(
        5000,
        help="solve the full problem outright up to this many reviews",
        topic="choosing",
        extra=True,
        minimum=0,
    )
    choose_seconds: float = setting(
        300.0,
        help="seconds of search, after which the best choice so far is taken",
        topic="choosing",
        extra=True,
        above=0,
    )
    split: SplitScheme = setting("by_user", help="what to hold out", topic="split")
    held_out: int = setting(
        3,
        help="reviews held out per user, for validation and for test (within_user)",
        topic="split",
        minimum=1,
    )
    seed: int = setting(
        0,
        help="seed of the split and of the synthetic reviews",
        topic="split",
        minimum=0,
        below=2**31,
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
            raise UserError(f"--world={self.world} generates reviews: add --synthetic=NUMBER")
        if bool(self.choose_users) != bool(self.choose_businesses):
            raise UserError("give both --choose_users and --choose_businesses, or neither")
        if _scale(self) != _STARS and self.synthetic:
            raise UserError(
                "--synthetic has its own stars: leave out --ratings, --bad_up_to, --excellent_from"
            )


def run(config: PrepareConfig) -> None:
    """Writes the corpus, or checks the same one if it exists."""
    output = Path(config.output)
    inputs = [("reviews", Path(name)) for name in config.reviews]
    inputs += [("businesses", Path(config.businesses))] if config.businesses else []
    for _, path in inputs:
        files.require_file(path, ON_DISK)
    if files.claim(output, "corpus.json"):
        _check(output, _settings(config, inputs, show_progress=True))
        files.say_complete(output)
        return
    versions = _versions(inputs)
    with ThreadPoolExecutor(1) as background:  # hashing takes as long as reading
        settings = background.submit(_settings, config, inputs, show_progress=False)
        with files.naming(output), files.new_folder(output) as folder:
            _fill(folder, config, settings)
            for path, version in _versions(inputs).items():
                if version != versions[path]:
                    raise UserError(f"{path} changed while it was being read")
    print(f"corpus written to {output}")


def _versions(inputs: list[tuple[str, Path]]) -> dict[Path, tuple[int, int, int]]:
    """What tells one version of an input from another."""
    stats = {path: path.stat() for _, path in inputs}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def _settings(
    config: PrepareConfig, inputs: list[tuple[str, Path]], show_progress: bool
) -> dict[str, Any]:
    """The inputs and settings of a corpus, without their paths."""
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
    """Raw reviews -> filters -> one review per pair -> choice -> split -> files."""
    review_paths, business_path = _sources(folder, config)
    scale = _scale(config)
    dumps = ReviewDumps(
        review_paths, _columns(config), scale, needs_dates=config.split == "by_time"
    )
    for path, name in zip(review_paths, dumps.formats, strict=True):
        print(f"{path.name}: {name}")
    of_yelp = bool(config.reviews) and set(dumps.formats) == {"Yelp"}
    with (folder / "rejects.ndjson").open("wb") as file:
        rejects, business_rejects = (Rejects(file, config.max_reject_fraction) for _ in range(2))
        scan = dumps.scan(rejects)
        _print_rejects(scan.lines, rejects.by_reason)
        if scan.unreadable_dates:
            print(f"{scan.unreadable_dates:,} dates cannot be read: they count as missing")
        businesses = read_businesses(business_path, business_rejects) if business_path else None
    minima = (config.min_reviews_user, config.min_reviews_business)
    kept, steps = filters.one_of_each_pair(scan.reviews, *minima, config.filter, of_yelp)
    kept, choice = _choose(kept, config)
    steps += [filters.count("chosen", kept, of_yelp)] if choice else []
    split, boundaries = split_reviews(kept, config.split, config.seed, config.held_out)

    tables = corpus.tables_of(kept, split, businesses, scale)
    texts = dumps.texts(kept)
    texts_sha256 = corpus.write_reviews(folder / "reviews.parquet", tables["reviews"], texts)
    for name in ("users", "businesses", "categories"):
        tables[name].write_parquet(folder / f"{name}.parquet")
    prepared = corpus.read_columns(folder, config.split, texts_sha256, scale)
    write_grouped(prepared)
    record = CorpusRecord(
        program_version=__version__,
        settings=settings.result(),
        formats=dumps.formats,
        texts_sha256=texts_sha256,
        columns_sha256=prepared.columns_sha256,
        files_sha256=corpus.hash_files(folder),
        lines=scan.lines,
        rejected=rejects.by_reason,
        unreadable_dates=scan.unreadable_dates,
        businesses_rejected=business_rejects.by_reason,
        steps=steps,
        choice=choice,
        split_reviews={name: int((split == name).sum()) for name in SPLITS},
        split_boundaries=boundaries,
        reviews_per={side: corpus.histogram(tables["reviews"][side]) for side in SIDES},
    )
    files.write_record(folder / "corpus.json", record)
    _print_corpus(prepared)
    if config.synthetic:
        path = folder / "synthetic" / "truth.json"
        truth = files.read_record(path, Truth)
        files.write_record(path, ceiling.measure(prepared, truth))


def _sources(folder: Path, config: PrepareConfig) -> tuple[list[Path], Path | None]:
    """The dumps of reviews and of businesses, generated first if --synthetic asks for it."""
    if not config.synthetic:
        business_path = Path(config.businesses) if config.businesses else None
        return [Path(name) for name in config.reviews], business_path
    raw_folder = folder / "synthetic"
    raw_folder.mkdir()
    generate(config.synthetic, config.seed, raw_folder, world=config.world)
    return [raw_folder / "review.ndjson"], raw_folder / "business.ndjson"


def _scale(config: PrepareConfig) -> RatingScale:
    """The scale of the ratings, with its cuts.

    Raises:
      UserError: it is none, or leaves a class without ratings.
    """
    try:
        return RatingScale.parse(config.ratings, config.bad_up_to, config.excellent_from)
    except ValueError as error:
        raise UserError(str(error)) from None


def _columns(config: PrepareConfig) -> dict[str, str]:
    """The dumps' names of our fields, as far as flags give them."""
    named = {
        "user_id": config.user_column,
        "business_id": config.business_column,
        "stars": config.stars_column,
        "text": config.text_column,
        "date": config.date_column,
        "review_id": config.review_id_column,
    }
    return {field: name for field, name in named.items() if name}


def _choose(kept: pl.DataFrame, config: PrepareConfig) -> tuple[pl.DataFrame, Choice | None]:
    """The reviews that the linear program keeps, and its report; all of them without a demand."""
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
    choice = msgspec.convert(report, Choice)
    print(
        f"  {choice.objective:,} reviews, no choice has fewer than {choice.lower_bound:,} "
        f"(gap {choice.gap:.2%}), {choice.solver}, {choice.seconds} s"
    )
    return kept.filter(keep), choice


def _check(output: Path, settings: dict[str, Any]) -> None:
    """Checks an existing corpus.

    Raises:
      UserError: it was written with other settings, or was damaged since.
    """
    record = files.read_record(output / "corpus.json", CorpusRecord)
    newer = {f.name: f.default for f in dataclasses.fields(PrepareConfig) if f.name in settings}
    files.refuse_other_settings(output, newer | record.settings, settings)
    prepared = corpus.read_corpus(output)
    for side in SIDES:
        read_grouped(prepared, side)
    for name, sha256 in record.files_sha256.items():
        files.require_file(output / name, prepared.remedy, sha256)


def _print_rejects(lines: int, by_reason: dict[str, int]) -> None:
    print(f"{lines:,} lines read, {sum(by_reason.values()):,} rejected")
    for reason, count in by_reason.items():
        print(f"  {count:,} x {reason}")


def _print_corpus(prepared: Corpus) -> None:
    shares = np.bincount(prepared.label, minlength=len(CLASSES)) / prepared.label.size
    classes = " / ".join(f"{share:.0%}" for share in shares)
    print(f"ratings {prepared.ratings}, {prepared.ratings.cuts}: {classes}")
    for name in SPLITS:
        print(f"{name:14}{prepared.rows(name).size:>12,} reviews")

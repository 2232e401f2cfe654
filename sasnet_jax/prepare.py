"""`python -m sasnet_jax.prepare`: raw reviews in, a corpus folder out (docs/formats.md)."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from sasnet_jax import __version__, cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.data import corpus, reviews, synthetic


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Settings of `prepare`."""

    reviews: tuple[str, ...] = setting(
        (), help="Yelp-schema NDJSON file of reviews, .gz too; repeatable", topic="input"
    )
    businesses: str = setting("", help="Yelp-schema NDJSON file of businesses", topic="input")
    synthetic: int = setting(
        0, help="number of reviews to generate instead of reading any", topic="input"
    )
    max_reject_fraction: float = setting(
        0.01, help="fraction of malformed lines that is tolerated", topic="input"
    )
    output: str = setting("", help="corpus folder to write", topic="output", required=True)
    min_reviews_user: int = setting(1, help="reviews a user must have", topic="choosing")
    min_reviews_business: int = setting(1, help="reviews a business must have", topic="choosing")
    filter: Literal["once", "core"] = setting(
        "once", help="count on the raw reviews (paper), or to a fixed point", topic="choosing"
    )
    split: Literal["by_user"] = setting("by_user", help="80/10/10 of the users", topic="choosing")
    seed: int = setting(0, help="of the split and of the synthetic reviews", topic="choosing")

    def __post_init__(self):
        """Refuses what cannot be meant."""
        if bool(self.reviews) == bool(self.synthetic):
            raise UserError("give either --reviews=FILE or --synthetic=NUMBER")
        if self.synthetic < 0:
            raise UserError(f"--synthetic={self.synthetic} must be positive")
        if self.synthetic and self.businesses:
            raise UserError("--synthetic generates its own businesses: leave out --businesses")
        if min(self.min_reviews_user, self.min_reviews_business) < 1:
            raise UserError("--min_reviews_user and --min_reviews_business must be at least 1")
        if not 0 <= self.max_reject_fraction <= 1:
            raise UserError(f"--max_reject_fraction={self.max_reject_fraction} is not in [0, 1]")
        if self.seed < 0:
            raise UserError(f"--seed={self.seed} must not be negative")


def run(config: PrepareConfig) -> None:
    """Writes the corpus, or finds the same one already there."""
    output = Path(config.output)
    inputs = [("reviews", Path(name)) for name in config.reviews]
    inputs += [("businesses", Path(config.businesses))] if config.businesses else []
    for _, path in inputs:
        if not path.is_file():
            raise UserError(f"{path} does not exist (--reviews, --businesses)")
    settings = {
        "inputs": [
            {
                "role": role,
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": files.file_sha256(path),
            }
            for role, path in inputs
        ],
        **dataclasses.asdict(config),
    }
    for name in ("output", "reviews", "businesses"):  # `inputs` says it, wherever the files lie
        del settings[name]
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        _refuse_or_reuse(output, settings)
        return
    with files.new_folder(output) as folder:
        _fill(folder, config, settings)
    print(f"corpus written to {output}")


def _fill(folder: Path, config: PrepareConfig, settings: dict[str, Any]) -> None:
    review_paths = [Path(name) for name in config.reviews]
    business_path = Path(config.businesses) if config.businesses else None
    if config.synthetic:
        raw_folder = folder / "synthetic"
        raw_folder.mkdir()
        synthetic.generate(config.synthetic, config.seed, raw_folder)
        review_paths = [raw_folder / "review.ndjson"]
        business_path = raw_folder / "business.ndjson"
    raw = reviews.read_reviews(review_paths, config.max_reject_fraction)
    businesses, rejects = None, raw.rejects
    if business_path:
        businesses, business_rejects = reviews.read_businesses(
            business_path, config.max_reject_fraction
        )
        rejects = rejects + business_rejects
    tables, summary = corpus.build(
        raw.table,
        businesses,
        min_reviews_user=config.min_reviews_user,
        min_reviews_business=config.min_reviews_business,
        filter_mode=config.filter,
        split=config.split,
        seed=config.seed,
    )
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    with (folder / "rejects.ndjson").open("w") as file:
        file.writelines(json.dumps(dataclasses.asdict(reject)) + "\n" for reject in rejects)
    description = {
        "format_version": corpus.FORMAT_VERSION,
        "program_version": __version__,
        "settings": settings,
        "texts_sha256": files.texts_sha256(tables["reviews"]["text"]),
        "lines": raw.lines,
        "rejected": dict(Counter(reject.reason for reject in rejects)),
        **summary,
    }
    files.write_json(folder / "corpus.json", description)
    _print_summary(description)


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


def _print_summary(description: dict[str, Any]) -> None:
    print(
        f"{description['lines']:,} lines read, {sum(description['rejected'].values()):,} rejected"
    )
    for reason, count in description["rejected"].items():
        print(f"  {count:,} x {reason}")
    print(f"{'':14}{'reviews':>11}{'users':>11}{'businesses':>12}")
    for step in description["steps"]:
        counts = (step["reviews"], step["users"], step["businesses"])
        print(f"{step['step']:14}{counts[0]:>11,}{counts[1]:>11,}{counts[2]:>12,}")
    for split, count in description["split_reviews"].items():
        print(f"{split:14}{count:>11,}")


if __name__ == "__main__":
    cli.main(PrepareConfig, run, "Raw reviews -> corpus folder.")

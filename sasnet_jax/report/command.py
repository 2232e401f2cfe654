"""`python -m sasnet_jax.report`: all results as one HTML page that needs nothing but a browser."""

import dataclasses
from pathlib import Path

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.report import page
from sasnet_jax.report.sources import open_sources

_NAME = "report.html"
_HEAD_BYTES = 2000  # of an earlier report, which name its generator


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Settings of `report`."""

    corpus: str = setting("", help="corpus folder", topic="files", required=True)
    store: tuple[str, ...] = setting((), help="embedding store; repeatable", topic="files")
    run: tuple[str, ...] = setting(
        (), help="run folder, finished or not; repeatable", topic="files"
    )
    baselines: tuple[str, ...] = setting(
        (), help="output folder of baselines; repeatable", topic="files"
    )
    comparison: tuple[str, ...] = setting(
        (), help="output folder of evaluate; repeatable", topic="files"
    )
    quality: tuple[str, ...] = setting(
        (), help="output folder of embedding_quality; repeatable", topic="files"
    )
    leakage: tuple[str, ...] = setting(
        (), help="output folder of leakage; repeatable", topic="files"
    )
    output: str = setting(
        "", help=f"page to write (.html), or a folder for {_NAME}", topic="files", required=True
    )
    title: str = setting("SASNet", help="heading of the page", topic="page")
    review_texts: bool = setting(
        True, help="show excerpts of reviews, not only figures", topic="page"
    )
    map_reviews: int = setting(
        1000, help="number of reviews on the map of embeddings", topic="page", minimum=3
    )
    seed: int = setting(
        0, help="seed of what is drawn at random", topic="page", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)


def run(config: ReportConfig) -> None:
    """Writes the page; replaces an earlier report, but no other file."""
    output = Path(config.output)
    path = output if output.suffix == ".html" else output / _NAME
    _refuse_other_file(path)
    sources = open_sources(
        Path(config.corpus),
        stores=config.store,
        runs=config.run,
        baselines=config.baselines,
        comparisons=config.comparison,
        quality=config.quality,
        leakage=config.leakage,
    )
    html = page.render(
        sources,
        title=config.title,
        sample=config.map_reviews,
        seed=config.seed,
        show_texts=config.review_texts,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        file.write(html.encode())
    print(f"written: {path} ({len(html.encode()) / 1e6:.1f} MB)")


def _refuse_other_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"--output={path} is a folder: name a file, or the folder it goes into")
    if path.exists():
        with path.open("rb") as file:
            if page.GENERATOR.encode() not in file.read(_HEAD_BYTES):
                raise UserError(
                    f"{path} is not a report written by this command: choose another --output"
                )

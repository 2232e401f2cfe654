"""Sources -> one self-contained HTML page, from the templates (autoescaped)."""

import base64
import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup, escape

from sasnet_jax.baselines.registry import MAJORITY
from sasnet_jax.corpus.corpus import CLASSES
from sasnet_jax.embedding_quality import quality_tables
from sasnet_jax.report import corpus_facts, embedding_map, models, provenance, results
from sasnet_jax.report.models import Group
from sasnet_jax.report.sources import Sources
from sasnet_jax.scores import paper
from sasnet_jax.scores.predictions import LEAKY

GENERATOR = "python -m sasnet_jax.report"  # by which a later report recognizes an earlier one


def render(sources: Sources, *, title: str, sample: int, seed: int, show_texts: bool) -> str:
    """Renders the page.

    Args:
      sources: the results to show.
      title: heading of the page.
      sample: largest number of reviews on the map.
      seed: seed of what is drawn at random.
      show_texts: whether excerpts of reviews are shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sasnet_jax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    script = environment.get_template("report.js").render()
    return environment.get_template("report.html.j2").render(
        _contents(sources, sample, seed, show_texts),
        title=title,
        generator=GENERATOR,
        made=f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC",
        script=Markup(script),
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _contents(sources: Sources, sample: int, seed: int, show_texts: bool) -> dict[str, Any]:
    """What the template shows; what is absent is empty."""
    corpus, texts = sources.corpus, sources.corpus.texts()
    groups = models.groups_of(sources)
    shown = results.shown(groups)
    matched = {group.first.paper for group in groups}  # rows of the paper's Table 2
    return {
        "classes": CLASSES,
        "leaky": LEAKY,
        "headlines": _headlines(sources, groups),
        "steps": sources.record.steps,
        "choice": sources.record.choice,
        "rejected": sources.record.rejected,
        "split_scheme": corpus.split_scheme,
        "splits": corpus_facts.splits(corpus),
        "pictures": corpus_facts.pictures(sources, texts),
        "examples": corpus_facts.examples(corpus, texts, seed) if show_texts else [],
        "show_texts": show_texts,
        "groups": groups,
        "metrics": models.METRICS,
        "paper_only": {name: row for name, row in paper.TABLE_2.items() if row not in matched},
        "waiting": [run for run in sources.runs if run.state != "finished"],
        "curves": [results.curves(run) for run in sources.runs],
        "confusions": [results.confusion(group) for group in shown],
        "reliability": results.reliability(shown, corpus),
        "histories": results.histories(groups),
        "cut_histories": results.cut_histories(groups),
        "comparisons": [results.comparison(output.record) for output in sources.comparisons],
        "leakage": results.leakage([output.record for output in sources.leakage]),
        "leak_sentences": [output.record.sentence for output in sources.leakage],
        "map": embedding_map.map_of(
            corpus, sources.stores, sample, seed, texts if show_texts else None
        ),
        "map_size": (embedding_map.WIDTH, embedding_map.HEIGHT),
        "qualities": [
            (quality_tables.table_1(output.record), quality_tables.table_3(output.record))
            for output in sources.quality
        ],
        "facts": provenance.facts(sources),
    }


def _breakable(name: str) -> Markup:
    """A name that may continue on the next line after a slash or an underscore."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(name))))


def _headlines(sources: Sources, groups: list[Group]) -> list[tuple[str, str]]:
    """The numbers worth reading first, each with its description."""
    corpus = sources.corpus
    headlines = [
        (f"{corpus.user.size:,}", "reviews"),
        (f"{corpus.user.max() + 1:,}", "users"),
        (f"{corpus.business.max() + 1:,}", "businesses"),
    ]
    run = models.best_run(groups)
    inputs = run.first.inputs if run else ""
    given = f" given {inputs}" if run else ""
    baselines = [group for group in groups if not group.first.is_run]
    chosen = {
        "majority": next((g for g in baselines if g.first.name == MAJORITY), None),
        f"best baseline{given}": models.best_baseline(groups, inputs),
        f"SASNet{given}": run,
    }
    for description, group in chosen.items():
        if group:
            name = "" if group.first.name == description else f": {group.name}"
            headlines.append((group.value("accuracy"), f"test accuracy, {description}{name}"))
    return headlines

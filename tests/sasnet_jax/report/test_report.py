import html.parser
import itertools
import json
import re
import shutil
import statistics
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from conftest import (
    TINY,
    assert_one_line_mistake,
    change_store,
    edit_json,
    run_command,
    write_store,
)
from test_packages import CONFIGS

from sasnet_jax import files
from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.store import open_store
from sasnet_jax.embedding_quality import command as embedding_quality
from sasnet_jax.embedding_quality.command import EmbeddingQualityConfig
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.evaluate.command import EvaluateConfig
from sasnet_jax.leakage.command import Leakage, Row
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.prepare import command as prepare
from sasnet_jax.report import charts, embedding_map
from sasnet_jax.report import command as report
from sasnet_jax.report.command import ReportConfig
from sasnet_jax.scores.predictions import LEAKY
from sasnet_jax.train import loop

_HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)></title>&amp;"
_EPOCHS = 3
_DIM = 8


@dataclass(frozen=True)
class Made:
    """A small world with hostile texts only, and all that the other commands wrote from it."""

    folder: Path

    def config(self, output: Path, **changes) -> ReportConfig:
        settings = {
            "corpus": str(self.folder / "corpus"),
            "store": (str(self.folder / "minilm"),),
            "run": tuple(str(self.folder / name) for name in ("run", "leaky_run", "unfinished")),
            "baselines": tuple(str(self.folder / f"baselines_{one}") for one in _PROTOCOLS),
            "comparison": (str(self.folder / "comparison"),),
            "quality": (str(self.folder / "quality"),),
            "leakage": (str(self.folder / "leakage"),),
            "map_reviews": 100,
        }
        return ReportConfig(output=str(output), **settings | changes)

    def json(self, *path: str) -> dict:
        return json.loads(self.folder.joinpath(*path).read_text())


_PROTOCOLS = ("exclude", "include")


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    dumps = world.corpus_folder / "synthetic"
    reviews = [json.loads(line) for line in (dumps / "review.ndjson").read_text().splitlines()]
    for review in reviews:
        review["text"] = f"{_HOSTILE} {review['text']}"
    businesses = map(json.loads, (dumps / "business.ndjson").read_text().splitlines())
    businesses = list(businesses)
    for business in businesses:
        business["categories"] = business["categories"].replace(", ", " <b>&, ")
    for name, records in {"review": reviews, "business": businesses}.items():
        (folder / f"{name}.ndjson").write_text("\n".join(map(json.dumps, records)))
    prepare.run(
        prepare.PrepareConfig(
            reviews=(str(folder / "review.ndjson"),),
            businesses=str(folder / "business.ndjson"),
            min_reviews_user=1,
            min_reviews_business=1,
            output=str(folder / "corpus"),
        )
    )
    corpus = read_corpus(folder / "corpus")
    rng = np.random.default_rng(0)
    table = rng.normal(size=(corpus.user.size, _DIM)) + corpus.stars[:, None]
    store = write_store(folder / "minilm", corpus, table.astype(np.float16))
    names = pl.read_parquet(folder / "corpus" / "categories.parquet").height
    np.save(store / "categories.npy", rng.normal(size=(names, _DIM)).astype(np.float16))
    change_store(store, encoder="minilm")
    paths = {"corpus": str(folder / "corpus"), "store": (str(store),)}
    for name, protocol in zip(("run", "leaky_run"), _PROTOCOLS, strict=True):
        settings = paths | TINY | {"target_review": protocol, "epochs": _EPOCHS}
        loop.train(TrainConfig(**settings, output=str(folder / name)))
        baselines.run(
            BaselinesConfig(
                **paths, output=str(folder / f"baselines_{protocol}"), target_review=protocol
            )
        )
    shutil.copytree(folder / "run", folder / "unfinished")
    settings = Run(folder / "run").record.config | {"epochs": 999, "seed": 5}
    edit_json(folder / "unfinished" / "config.json", config=settings)
    evaluate.run(
        EvaluateConfig(
            run=(str(folder / "run"),),
            baselines=str(folder / "baselines_exclude"),
            output=str(folder / "comparison"),
            truncate_histories=True,
        )
    )
    evaluate.run(EvaluateConfig(run=(str(folder / "leaky_run"),)))
    embedding_quality.run(
        EmbeddingQualityConfig(**paths, output=str(folder / "quality"), draws=100)
    )
    _write_leakage(folder, corpus.sha256)
    return Made(folder)


def _write_leakage(folder: Path, corpus_sha256: str) -> None:
    """What `leakage` would write about the baselines that exist."""
    exclude, include = (
        files.read_json(folder / f"baselines_{one}" / "baselines.json", "")["models"]
        for one in _PROTOCOLS
    )
    rows = []
    for name, model in include.items():
        accuracy = [one[name]["test"]["accuracy"] for one in (exclude, include)]
        row = {"reading": "all", "model": name, **dict(zip(_PROTOCOLS, accuracy, strict=True))}
        row |= {"leak": accuracy[1] - accuracy[0], "validation_include": 0.5}
        keys = ("label", "sees", "features", "store", "fit")
        rows.append(row | {key: model[key] for key in keys})
    (folder / "leakage").mkdir()
    record = Leakage(
        corpus_sha256=corpus_sha256,
        subset=0,
        seed=0,
        readings={"all": "all reviews"},
        accuracy=msgspec.convert(rows, list[Row]),
        sentence="It explains much.",
    )
    files.write_record(folder / "leakage" / "leakage.json", record)


class _Page(html.parser.HTMLParser):
    """Elements, texts, and the rows of all tables, by the standard library's parser."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(text)
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        if tag == "small" and self._in_cell:
            self.rows[-1][-1] += " "  # is on a line of its own

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data

    def row(self, *begins: str) -> list[str]:
        found = [row for row in self.rows if row[: len(begins)] == list(begins)]
        assert len(found) == 1, found
        return found[0]


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report")
    report.run(made.config(output, title=_HOSTILE))
    return output / "report.html"


@pytest.fixture(scope="module")
def parsed(page) -> _Page:
    return _Page(page.read_text())


def _results(parsed: _Page, model: str, protocol: str) -> list[str]:
    """The line of Table 2: name with inputs and protocol, five metrics, the paper's, reviews."""
    rows = [row for row in parsed.rows if len(row) == 8]
    inputs = "" if model == "majority" else "text, "
    found = [row for row in rows if row[0] == f"{model} {inputs}{protocol}"]
    assert len(found) == 1, (model, protocol)
    return found[0]


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_numbers_of_the_models_are_those_of_the_files(made, parsed, protocol):
    said = LEAKY if protocol == "include" else "target excluded"
    run = "run" if protocol == "exclude" else "leaky_run"
    expected = {
        run: made.json(run, "evaluation.json"),
        "TF-IDF + SVM": made.json(f"baselines_{protocol}", "baselines.json")["models"]["tfidf_svm"],
        "minilm + SVM": made.json(f"baselines_{protocol}", "baselines.json")["models"][
            "minilm_svm"
        ],
    }
    for name, found in expected.items():
        test = found["test"]
        names = ("accuracy", "macro_f1", "quadratic_kappa", "log_loss", "calibration_error")
        numbers = ["–" if test[one] is None else f"{test[one]:.3f}" for one in names]
        row = _results(parsed, name, said)
        assert row[1:6] == numbers
        assert row[-1] == str(test["reviews"])


def test_a_corpus_that_is_not_yelps_has_no_counts_of_the_paper(world, tmp_path):
    corpus = shutil.copytree(world.corpus_folder, tmp_path / "corpus")
    steps = json.loads((corpus / "corpus.json").read_text())["steps"]
    for step in steps:
        step.pop("paper", None)
    edit_json(corpus / "corpus.json", steps=steps)
    report.run(ReportConfig(corpus=str(corpus), output=str(tmp_path / "page.html")))
    page = _Page((tmp_path / "page.html").read_text())
    counts = [f"{steps[0][name]:,}" for name in ("reviews", "users", "businesses")]
    assert page.row("read") == ["read", *counts, "–"]


def test_the_papers_numbers_stand_beside(parsed):
    assert _results(parsed, "TF-IDF + SVM", "target excluded")[6] == "0.57 / 0.57"
    assert _results(parsed, "run", "target excluded")[6] == "0.52 / 0.52"
    assert "0.6925 / 0.6925" in parsed.row("phi3 + SVM only in the paper")


def test_whatever_was_made_with_the_target_included_says_so(made, parsed, page):
    for name in ("leaky_run", "majority", "TF-IDF + SVM"):
        _results(parsed, name, LEAKY)
    models = made.json("baselines_include", "baselines.json")["models"]
    named = [row[0] for row in parsed.rows if len(row) == 8]
    assert sum(LEAKY in name for name in named) == len({"leaky_run", *models})
    captions = re.findall(r"<figcaption>leaky_run.*?</figcaption>", page.read_text(), re.DOTALL)
    assert len(captions) == 2 and all(LEAKY in one for one in captions)  # curves, confusion


def test_splits_and_classes_are_those_of_the_corpus(made, parsed):
    table = pl.read_parquet(made.folder / "corpus" / "reviews.parquet")
    for split in ("train", "validation", "test"):
        rows = table.filter(split=split)
        shares = [f"{(rows['label'] == i).mean():.0%}".replace("%", " %") for i in range(3)]
        counts = [rows.height, rows["user"].n_unique(), rows["business"].n_unique()]
        assert parsed.row(split) == [split, *(f"{n:,}" for n in counts), *shares]


def test_confusion_matrix_is_counted_from_the_predictions(made, parsed):
    found = pl.read_parquet(made.folder / "run" / "predictions.parquet").filter(split="test")
    names = ("bad", "good", "excellent")
    predicted = found.select(f"p_{name}" for name in names).to_numpy().argmax(axis=1)
    label = found["label"].to_numpy()
    for i, name in enumerate(names):
        count = [int(((label == i) & (predicted == j)).sum()) for j in range(3)]
        shares = [f"{100 * n / max((label == i).sum(), 1):.0f} %" for n in count]
        assert [name, *(f"{n:,} {s}" for n, s in zip(count, shares, strict=True))] in parsed.rows


def test_reliability_is_counted_from_the_predictions(made, page):
    found = pl.read_parquet(made.folder / "run" / "predictions.parquet").filter(split="test")
    probability = found.select("p_bad", "p_good", "p_excellent").to_numpy()
    right = probability.argmax(axis=1) == found["label"].to_numpy()
    bins = [[] for _ in range(15)]
    for confidence, hit in zip(probability.max(axis=1), right, strict=True):
        bins[min(int(confidence * 15), 14)].append(hit)
    expected = [
        f"{len(b)} reviews, {np.mean(b):.2f} of them predicted correctly"
        for b in bins
        if len(b) >= 10
    ]
    assert expected
    for note in expected:
        assert f"<title>{note}</title>" in page.read_text()


def test_learning_curves_are_straight_images_of_the_metrics(made, page):
    lines = (made.folder / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["validation_log_loss"] for line in lines]
    card = re.search(r"<figcaption>run <small>.*?</figure>", page.read_text(), re.DOTALL)[0]
    path = re.findall(r' d="M([^"]+)"', card)[1]
    x, y = np.array([point.split(",") for point in path.split("L")], float).T
    assert x.size == _EPOCHS and (np.diff(x) > 0).all()
    slope, origin = np.polyfit(losses, y, 1)
    assert slope < 0  # pixels grow downwards
    np.testing.assert_allclose(y, slope * np.array(losses) + origin, atol=0.1)


def test_accuracy_by_history_is_that_of_the_file(made, page):
    slices = made.json("run", "evaluation.json")["test"]["by_history"]
    known = [one["accuracy"] for one in slices.values() if one["accuracy"] is not None]
    text = page.read_text()
    card = re.search(r"<figcaption>Accuracy by length.*?</figure>", text, re.DOTALL)[0]
    y = [float(one) for one in re.findall(r'cy="([\d.]+)"', card)][: len(known)]  # the run is first
    assert len(y) > 1 and (np.sign(np.diff(y)) == -np.sign(np.diff(known))).all()
    for name, one in slices.items():
        assert f"{one['reviews']:,} with {name}" in card


def test_comparisons_and_cut_histories_are_those_of_the_files(made, parsed, page):
    found = made.json("comparison", "comparison.json")["comparisons"]
    assert found
    for one in found:
        low, high = one["interval"]
        row = [f"{one['difference']:+.3f}", f"[{low:+.3f}, {high:+.3f}]", f"{one['holm_p']:.2g}"]
        assert row in [line[1:4] for line in parsed.rows]
    cut = made.json("run", "evaluation.json")["truncated_histories"]
    card = re.search(r"<figcaption>Accuracy when.*?</figure>", page.read_text(), re.DOTALL)[0]
    y = [float(one) for one in re.findall(r'cy="([\d.]+)"', card)]
    expected = [one["every_user"]["accuracy"] for one in cut.values()]
    assert len(y) == len(expected) and (np.sign(np.diff(y)) == -np.sign(np.diff(expected))).all()


def test_leakage_bars_are_differences_of_the_files(made, page):
    accuracy = [
        made.json(f"baselines_{one}", "baselines.json")["models"]["tfidf_svm"]["test"]["accuracy"]
        for one in _PROTOCOLS
    ]
    bars = re.findall(r"<li>\s*<span class=\"name.*?</li>", page.read_text(), re.DOTALL)
    assert "It explains much." in page.read_text()
    first = next(i for i, bar in enumerate(bars) if "TF-IDF + SVM, target excluded" in bar)
    assert f">{accuracy[0]:.3f}<" in bars[first]
    assert LEAKY in bars[first + 1]
    assert f">{accuracy[1]:.3f} ({accuracy[1] - accuracy[0]:+.3f})<" in bars[first + 1]


def test_map_is_the_projection_on_the_first_two_principal_components(made):
    corpus = read_corpus(made.folder / "corpus")
    store = open_store(made.folder / "minilm", corpus)
    found = embedding_map.map_of(corpus, [store], corpus.user.size, 0, None)
    table = np.asarray(store.table, np.float64)
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    u, s, _ = np.linalg.svd(table, full_matrices=False)
    drawn = np.array(found.projections[0].points)
    inside = ((drawn > 11) & (drawn < np.array([629, 469]))).all(axis=1)  # not put on the edge
    assert inside.mean() > 0.9
    for axis in range(2):
        r = np.corrcoef(drawn[inside, axis], (u * s)[inside, axis])[0, 1]
        assert abs(r) > 0.9999
    assert found.label == tuple(corpus.label)


def test_map_colors_a_review_by_the_rarest_of_its_categories(made):
    corpus = read_corpus(made.folder / "corpus")
    store = open_store(made.folder / "minilm", corpus)
    found = embedding_map.map_of(corpus, [store], 50, 0, None)
    businesses = pl.read_parquet(made.folder / "corpus" / "businesses.parquet")["categories"]
    reviews = dict(pl.read_parquet(made.folder / "corpus" / "categories.parquet").iter_rows())
    assert corpus.user.size not in [reviews[name] for name in found.categories[:-1]]
    rows = np.sort(np.random.default_rng(0).permutation(corpus.user.size)[:50])
    for row, category in zip(rows, found.category, strict=True):
        its = [x for x in businesses[int(corpus.business[row])] if x in found.categories]
        expected = min(its, key=lambda x: reviews[x]) if its else "other"
        assert reviews.get(found.categories[category]) == reviews.get(expected)


def test_seeds_of_one_model_are_shown_as_mean_and_deviation(made, tmp_path):
    accuracy = []
    for seed in range(2):
        run = shutil.copytree(made.folder / "run", tmp_path / f"text_{seed}")
        edit_json(run / "config.json", config=Run(run).record.config | {"seed": seed})
        test = made.json("run", "evaluation.json")["test"]
        test["accuracy"] += 0.1 * seed
        edit_json(run / "evaluation.json", test=test)
        accuracy.append(test["accuracy"])
    both = (str(tmp_path / "text_0"), str(tmp_path / "text_1"))
    report.run(made.config(tmp_path / "out", run=both))
    parsed = _Page((tmp_path / "out" / "report.html").read_text())
    row = _results(parsed, "text (2 seeds)", "target excluded")
    assert row[1] == f"{statistics.mean(accuracy):.3f} ± {statistics.stdev(accuracy):.3f}"


def test_an_unfinished_run_is_shown_as_such(made, parsed, tmp_path):
    assert f"unfinished: epoch {_EPOCHS} of 999" in parsed.text
    assert not [row for row in parsed.rows if row[0] == "unfinished"]  # it has no result
    begun = shutil.copytree(made.folder / "unfinished", tmp_path / "begun")
    (begun / "metrics.jsonl").write_text('{"epoch": 1, "ste')  # killed while it wrote
    shutil.rmtree(begun / "checkpoints")
    report.run(made.config(tmp_path / "out", run=(str(begun),)))
    text = _Page((tmp_path / "out" / "report.html").read_text()).text
    assert "begun: epoch 0 of 999" in text
    assert "No epoch is complete yet" in text


def test_an_evaluation_of_an_earlier_epoch_is_not_shown(made, tmp_path):
    run = shutil.copytree(made.folder / "run", tmp_path / "went_on")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    more = {"epoch": _EPOCHS + 1, "best_epoch": _EPOCHS + 1, "validation_log_loss": 0.9}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last | more) + "\n")
    report.run(made.config(tmp_path / "out", run=(str(run),)))
    parsed = _Page((tmp_path / "out" / "report.html").read_text())
    assert "went_on: finished, evaluate again" in parsed.text
    assert not [row for row in parsed.rows if row[0].startswith("went_on")]


def test_texts_titles_and_names_are_escaped(parsed, page):
    html = page.read_text()
    assert parsed.tags.count("script") == 2  # the map's data and the program
    assert parsed.tags.count("b") == html.count("<li><b>") + 1  # the headlines, and the map's panel
    assert "img" not in parsed.tags
    assert _HOSTILE in parsed.text and " <b>&" in parsed.text
    shown = re.search(r'id="map-reviews">(.*?)</script>', html, re.DOTALL)[1]
    assert all(one["text"].startswith(_HOSTILE) for one in json.loads(shown))


def test_without_review_texts_no_text_is_in_the_page(made, tmp_path):
    report.run(made.config(tmp_path, review_texts=False))
    html = (tmp_path / "report.html").read_text()
    assert "alert" not in html
    texts = pl.read_parquet(made.folder / "corpus" / "reviews.parquet")["text"]
    assert not any(text[len(_HOSTILE) + 1 :][:40] in html for text in texts)


def test_what_is_absent_names_a_command_that_takes_its_flags(made, tmp_path):
    nothing = dict.fromkeys(("store", "run", "baselines", "comparison", "quality", "leakage"), ())
    report.run(made.config(tmp_path, **nothing))
    text = _Page((tmp_path / "report.html").read_text()).text
    commands = re.findall(r"python -m sasnet_jax\.(\w+)((?: --\w+=\w+)+)", text)
    assert {name for name, _ in commands} >= {"train", "evaluate", "baselines", "embedding_quality"}
    for name, flags in commands:
        wanted = f"{name}config".replace("_", "")
        (config,) = (config for config in CONFIGS if config.__name__.lower() == wanted)
        assert {*re.findall(r"--(\w+)", flags)} <= {field.name for field in fields(config)}
    assert "python -m embed_torch --corpus=" in text


def _other(made: Made, tmp_path: Path, case: str) -> dict:
    """What to change in the settings so that something does not belong to the corpus."""
    if case == "store":
        found = shutil.copytree(made.folder / "minilm", tmp_path / "minilm")
        change_store(found, texts_sha256="0" * 64)
        return {"store": (str(found),)}
    if case == "predictions":
        found = shutil.copytree(made.folder / "run", tmp_path / "run")
        table = pl.read_parquet(found / "predictions.parquet")
        table.with_columns(split=pl.lit("test")).write_parquet(found / "predictions.parquet")
        return {"run": (str(found),)}
    name, flag, file = {
        "run": ("run", "run", "config.json"),
        "baselines": ("baselines_exclude", "baselines", "baselines.json"),
        "comparison": ("comparison", "comparison", "comparison.json"),
        "quality": ("quality", "quality", "embedding_quality.json"),
        "leakage": ("leakage", "leakage", "leakage.json"),
    }[case]
    found = shutil.copytree(made.folder / name, tmp_path / name)
    edit_json(found / file, corpus_sha256="0" * 64)
    return {flag: (str(found),)}


@pytest.mark.parametrize(
    "case", ["store", "run", "predictions", "baselines", "comparison", "quality", "leakage"]
)
def test_what_belongs_to_another_corpus_is_refused(made, tmp_path, case):
    changes = _other(made, tmp_path, case)
    with pytest.raises(UserError, match=str(tmp_path)):
        report.run(made.config(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_corpus_is_one_line(made, tmp_path):
    (store,) = _other(made, tmp_path, "store")["store"]
    corpus = made.folder / "corpus"
    output = f"--output={tmp_path / 'out'}"
    result = run_command("sasnet_jax.report", f"--corpus={corpus}", f"--store={store}", output)
    assert_one_line_mistake(result, store, "texts_sha256")


def test_a_report_is_replaced_and_any_other_file_is_not(made, tmp_path):
    path = tmp_path / "page.html"
    report.run(made.config(path, title="first"))
    report.run(made.config(path, title="second"))
    assert "<h1>second</h1>" in path.read_text()
    path.write_text("<h1>mine</h1>")
    with pytest.raises(UserError, match="not a report"):
        report.run(made.config(path))
    assert path.read_text() == "<h1>mine</h1>"


@pytest.mark.parametrize(
    ("share", "said"), [(0.5, "50 %"), (0.004, "0.4 %"), (0.0, "0 %"), (1, "100 %")]
)
def test_percent(share, said):
    assert charts.percent(share) == said


# In a browser.

_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_browser = pytest.mark.skipif(
    not (_CHROMIUM and _DRIVER),
    reason="needs chromium and chromedriver (apt-get install chromium-driver)",
)
_WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def _open(driver, page: Path, width: int = 1280) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.get_log("browser"), driver.get_log("performance")
    driver.get(page.as_uri())


def _click(driver, css: str):
    element = driver.find_element("css selector", css)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()
    return element


def _color(driver, css: str, property: str) -> str:
    return driver.find_element("css selector", css).value_of_css_property(property)


@_browser
@pytest.mark.parametrize("width", _WIDTHS.values(), ids=_WIDTHS)
def test_the_page_opens_without_errors_requests_or_sideways_scrolling(chromium, page, width):
    _open(chromium, page, width)
    sideways = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not chromium.execute_script(sideways)
    for details in chromium.find_elements("css selector", "details:not([open]) > summary"):
        chromium.execute_script("arguments[0].click()", details)
    assert not chromium.execute_script(sideways)
    assert chromium.get_log("browser") == []
    events = [json.loads(one["message"])["message"] for one in chromium.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked and all(url.startswith(("file:", "data:")) for url in asked)


@_browser
def test_the_theme_follows_the_system(chromium, page):
    backgrounds = {}
    for system in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": system}]}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        _open(chromium, page)
        backgrounds[system] = _color(chromium, "body", "background-color")
    assert backgrounds["light"] != backgrounds["dark"]
    assert chromium.get_log("browser") == []


@_browser
def test_the_map_is_colored_by_class_and_by_category(chromium, page):
    def colors(toggle: str) -> dict[str, set[str]]:
        """The colors of the points that have each of the class attribute's words."""
        _click(chromium, f"label:has(input[value={toggle}])")
        found: dict[str, set[str]] = {}
        for point in chromium.find_elements("css selector", ".map svg circle"):
            for word in point.get_attribute("class").split():
                found.setdefault(word, set()).add(point.value_of_css_property("fill"))
        return found

    _open(chromium, page)
    for toggle, letter in {"category": "k", "class": "c"}.items():
        found = {word: shown for word, shown in colors(toggle).items() if word[0] == letter}
        assert all(len(shown) == 1 for shown in found.values())  # one color each, and another
        assert len(set.union(*found.values())) == len(found) > 1
        assert chromium.find_element("css selector", f".of-{toggle}").is_displayed()
    assert not chromium.find_element("css selector", ".of-category").is_displayed()


@_browser
@pytest.mark.parametrize("width", _WIDTHS.values(), ids=_WIDTHS)
def test_a_point_of_the_map_shows_its_review_as_text(chromium, page, width):
    _open(chromium, page, width)
    _click(chromium, ".map circle:nth-of-type(7)")
    reading = chromium.find_element("css selector", ".reading")
    assert _HOSTILE in reading.find_element("css selector", "p").text
    assert "★" in reading.text and "not" not in reading.find_element("css selector", "b").text
    assert len(chromium.find_elements("css selector", "script")) == 2
    assert not chromium.find_elements("css selector", "img")
    assert chromium.get_log("browser") == []


@_browser
def test_stores_of_the_map_are_chosen(chromium, made, tmp_path):
    corpus = read_corpus(made.folder / "corpus")
    table = np.random.default_rng(3).normal(size=(corpus.user.size, _DIM)).astype(np.float16)
    second = write_store(tmp_path / "second", corpus, table)
    stores = (str(made.folder / "minilm"), str(second))
    report.run(made.config(tmp_path, store=stores))
    _open(chromium, tmp_path / "report.html")
    shown = [one.is_displayed() for one in chromium.find_elements("css selector", "[data-picture]")]
    assert shown[0] and sum(shown) == 1
    last = len(shown) - 1
    _click(chromium, f"label:has(input[name=picture][value='{last}'])")
    shown = [one.is_displayed() for one in chromium.find_elements("css selector", "[data-picture]")]
    assert shown[last] and sum(shown) == 1


@_browser
def test_the_map_works_without_review_texts(chromium, made, tmp_path):
    report.run(made.config(tmp_path, review_texts=False))
    _open(chromium, tmp_path / "report.html", 390)
    _click(chromium, ".map circle:nth-of-type(7)")
    assert chromium.get_log("browser") == []
    assert not chromium.find_elements("css selector", ".reading")


@_browser
def test_every_link_of_the_navigation_leads_to_a_section(chromium, page):
    _open(chromium, page)
    links = chromium.find_elements("css selector", "nav a")
    targets = [link.get_attribute("href").split("#")[1] for link in links]
    assert targets and all(itertools.starmap(chromium.find_elements, (("id", t) for t in targets)))

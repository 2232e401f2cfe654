"""Pictures of runs: learning curves from their metrics.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from sasnet_jax.files import replacing
from sasnet_jax.model.run import Run


def learning_curve(run: Run) -> None:
    """Draws training loss and validation log-loss (nats), and validation accuracy, by epoch.

    Writes `plots/learning_curve.png` into the run.
    """
    records = run.curve
    epochs = [record["epoch"] for record in records]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for axes, names in (
        (losses, ("train_loss", "validation_log_loss")),
        (accuracies, ("validation_accuracy", "validation_macro_f1")),
    ):
        for name in names:
            axes.plot(epochs, [record[name] for record in records], label=name.replace("_", " "))
        axes.axvline(records[-1]["best_epoch"], color="0.6", linestyle=":", label="best epoch")
        axes.set_xlabel("epoch")
        axes.legend(frameon=False)
    losses.set_ylabel("nats")
    leaky = records[-1]["target_review"] == "include"
    figure.suptitle(run.name + (", target included (leaky)" if leaky else ""))
    (run.folder / "plots").mkdir(exist_ok=True)
    figure.savefig(run.folder / "plots" / "learning_curve.png", dpi=120)


def learning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws validation log-loss (nats) and accuracy of several runs by epoch, into one PNG file.

    Args:
      runs: for each label the records of a metrics.jsonl.
      path: the file to write, atomically.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    few = len(runs) <= 10
    colours = (
        colormaps["tab10"](range(10)) if few else colormaps["turbo"](np.linspace(0, 1, len(runs)))
    )
    names = ("validation_log_loss", "validation_accuracy")
    for axes, name in zip(figure.subplots(1, 2), names, strict=True):
        axes.set_prop_cycle(color=colours)
        for label, records in runs.items():
            epochs = [record["epoch"] for record in records]
            axes.plot(epochs, [record[name] for record in records], ".-", ms=3, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name.replace("_", " "))
    labels = axes.get_legend_handles_labels()
    figure.legend(*labels, loc="outside right center", frameon=False, fontsize="small")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)

"""The picture of a run: learning curves from its metrics.jsonl."""

from matplotlib.figure import Figure

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

"""The picture of a run: learning curves from its metrics.jsonl."""

from matplotlib.figure import Figure

from sasnet_jax.files import replacing
from sasnet_jax.model.run import Run


def learning_curve(run: Run) -> None:
    """Draws training loss and validation log-loss (nats), and validation accuracy, by epoch.

    Writes `plots/learning_curve.png` into the run.
    """
    epochs = [epoch.epoch for epoch in run.curve]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for axes, names in (
        (losses, ("train_loss", "validation_log_loss")),
        (accuracies, ("validation_accuracy", "validation_macro_f1")),
    ):
        for name in names:
            values = [getattr(epoch, name) for epoch in run.curve]
            axes.plot(epochs, values, label=name.replace("_", " "))
        axes.axvline(run.curve[-1].best_epoch, color="0.6", linestyle=":", label="best epoch")
        axes.set_xlabel("epoch")
        axes.legend(frameon=False)
    losses.set_ylabel("nats")
    leaky = run.config.target_review == "include"
    figure.suptitle(run.name + (", target included (leaky)" if leaky else ""))
    (run.folder / "plots").mkdir(exist_ok=True)
    with replacing(run.folder / "plots" / "learning_curve.png") as file:
        figure.savefig(file, format="png", dpi=120)

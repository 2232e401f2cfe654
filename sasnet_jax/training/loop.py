"""The training loop: chunks of steps, an evaluation each epoch, checkpoints between.

Everything that the result depends on is in the checkpoint or follows from seed and step, so a run
that was stopped, or killed, and started again ends bit for bit where it would have ended.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int32
from tqdm import tqdm

from sasnet_jax.cli import Preempted, UserError
from sasnet_jax.evaluation import metrics, predictions
from sasnet_jax.files import sole_writer
from sasnet_jax.training import run_folder, step
from sasnet_jax.training.checkpoint import Checkpoints, Progress
from sasnet_jax.training.config import TrainConfig
from sasnet_jax.training.tensorboard import Scalars

_CHUNK_SECONDS = 1.0  # between two looks at the clock and at SIGTERM
_PREDICT_BATCH = 512


def train(config: TrainConfig) -> None:
    """Trains, or resumes, the run in `config.output`.

    Raises:
      UserError: inputs that do not fit, a folder in use, or a loss that is not finite.
      Preempted: SIGTERM came, and everything is saved.
    """
    corpus, store, data = run_folder.load_data(config)
    run = Path(config.output)
    corpus.refuse_missing_class()
    run_folder.refuse_foreign(run)
    with sole_writer(run):
        description = run_folder.describe(run, config, corpus, store)
        if not (run / "config.json").exists():
            run_folder.write_description(run, description)
        loop = _Loop(config, run, data, corpus.rows("train"), corpus.rows("validation"))
        handler = signal.signal(signal.SIGTERM, loop.request_stop)
        try:
            loop.restore()
            run_folder.write_description(run, description)  # epochs or patience may have grown
            run_folder.write_zscore(run, data)
            loop.run()
        finally:
            signal.signal(signal.SIGTERM, handler)


def predict(
    functions: step.Functions,
    params: Any,
    data: step.Data,
    rows: Int32[np.ndarray, "n"],
    between_batches: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "n c"]:
    """Probabilities of `rows`, a batch at a time, with a progress bar where it takes long."""
    probabilities = []
    with tqdm(total=rows.size, desc="predicting", unit="review", delay=5, leave=False) as bar:
        for first in range(0, rows.size, _PREDICT_BATCH):
            batch = rows[first : first + _PREDICT_BATCH]
            padded = np.pad(batch, (0, _PREDICT_BATCH - batch.size), mode="edge")
            found = functions.predict(params, data, jax.device_put(padded))
            probabilities.append(jax.device_get(found)[: batch.size])
            bar.update(batch.size)
            between_batches()
    return np.concatenate(probabilities)


class _Loop:
    """One run in progress."""

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        data: step.Data,
        train_rows: Int32[np.ndarray, "n"],
        validation_rows: Int32[np.ndarray, "m"],
    ):
        self.config, self.run_folder = config, run
        self.functions = step.build(config, data.table.shape[1])
        self.data = jax.device_put(data)
        self.train_rows = jax.device_put(train_rows)
        self.validation_rows = validation_rows
        self.validation_labels = np.asarray(data.label)[validation_rows]
        self.steps_per_epoch = -(-train_rows.size // config.batch_size)
        self.checkpoints = Checkpoints(run)
        self.stop_requested = False
        self.steps_per_chunk = 1
        self.rate = 0.0  # examples a second in the last chunk
        self.saved_at = time.monotonic()
        self.saved_epochs = 0
        leaky = config.target_review == "include"
        self.title = f"training, {predictions.LEAKY}" if leaky else "training"

    def run(self) -> None:
        """Goes on until the last epoch, or until patience ends."""
        if self._finished():
            print(f"run {self.run_folder} is already complete: best epoch {self._best()}")
            return
        first = self._epochs()
        scalars = Scalars(self.run_folder, first + 1)
        try:
            with (
                jax.transfer_guard("disallow"),
                tqdm(total=self.config.epochs, initial=first, desc=self.title, unit="epoch") as bar,
            ):
                while not self._finished():
                    self._train_epoch()
                    self._evaluate(scalars, bar)
                    if time.monotonic() - self.saved_at > self.config.checkpoint_seconds:
                        self._save()
            if self.saved_epochs < self._epochs():
                self._save()
        finally:
            self.checkpoints.close()
            scalars.close()
        print(f"{self.title}: best epoch {self._best()} -> {self.run_folder}")

    def restore(self) -> None:
        """Takes up the latest checkpoint, or the start.

        Raises:
          UserError: the checkpoint does not fit.
        """
        state = jax.device_get(self.functions.init())
        found = self.checkpoints.restore(state, state.params)
        if found is None:
            nothing_yet = Progress(epochs_evaluated=0, best_epoch=0, best_log_loss=None)
            found = state, state.params, nothing_yet
        state, self.best_params, self.progress = found
        self.step = int(state.step)
        self.state = jax.device_put(state)
        if self.step:
            print(f"resumed at step {self.step}")
        run_folder.cut_metrics(self.run_folder, self._epochs())

    def _train_epoch(self) -> None:
        """Steps to the end of the epoch, a chunk at a time."""
        epoch = self._epochs()
        number = jax.device_put(np.int32(epoch))
        order = step.shuffle(self.train_rows, number, self.config.batch_size, self.config.seed)
        index = self.step - epoch * self.steps_per_epoch
        while index < self.steps_per_epoch:
            started = time.monotonic()
            last = min(index + self.steps_per_chunk, self.steps_per_epoch)
            bounds = jax.device_put((np.int32(index), np.int32(last)))
            self.state, bad = self.functions.train_chunk(self.state, self.data, order, *bounds)
            bad_step = int(jax.device_get(bad))
            if bad_step >= 0:
                raise UserError(
                    f"the loss is not finite from step {bad_step} on (epoch {epoch + 1}): "
                    "lower --learning_rate, or look at the store for extreme values"
                )
            self.step += last - index
            per_step = (time.monotonic() - started) / (last - index)
            self.rate = self.config.batch_size / per_step
            # Grows by at most 4 at a time, because the first chunk includes the compilation.
            wanted = max(1, int(_CHUNK_SECONDS / per_step))
            self.steps_per_chunk = min(wanted, 4 * self.steps_per_chunk)
            index = last
            self._stop_if_requested()

    def _evaluate(self, scalars: Scalars, bar: tqdm) -> None:
        """Validation metrics, best so far, one line of metrics.jsonl."""
        probability = predict(
            self.functions,
            self.state.params,
            self.data,
            self.validation_rows,
            self._stop_if_requested,
        )
        found = metrics.summarize(self.validation_labels, probability)
        epoch = self._epochs() + 1
        best = self.progress["best_log_loss"]
        if best is None or found["log_loss"] < best:
            self.best_params = jax.device_get(self.state.params)
            self.progress |= {"best_epoch": epoch, "best_log_loss": found["log_loss"]}
        self.progress["epochs_evaluated"] = epoch
        record = {
            "epoch": epoch,
            "step": self.step,
            "target_review": self.config.target_review,
            "train_loss": float(jax.device_get(self.state.epoch_loss)) / self.train_rows.size,
            "validation_log_loss": found["log_loss"],
            "validation_accuracy": found["accuracy"],
            "validation_macro_f1": found["macro_f1"],
            "best_epoch": self.progress["best_epoch"],
        }
        run_folder.append_metrics(self.run_folder, record)
        shown = ("train_loss", "validation_log_loss", "validation_accuracy")
        scalars.write(epoch, {name: record[name] for name in shown})
        bar.update()
        bar.set_postfix_str(
            f"{self.rate:,.0f} examples/s, loss {record['train_loss']:.3f}, "
            f"validation {found['log_loss']:.3f} / {found['accuracy']:.3f}, "
            f"best epoch {self.progress['best_epoch']}"
        )

    def _finished(self) -> bool:
        waited = self._epochs() - self.progress["best_epoch"]
        return self._epochs() >= self.config.epochs or waited >= self.config.patience

    def _epochs(self) -> int:
        return self.progress["epochs_evaluated"]

    def _best(self) -> str:
        loss = self.progress["best_log_loss"]
        return f"{self.progress['best_epoch']}, validation log-loss {loss:.4f}"

    def _save(self) -> None:
        self.checkpoints.save(
            self.step, jax.device_get(self.state), self.best_params, self.progress.copy()
        )
        self.saved_at = time.monotonic()
        self.saved_epochs = self._epochs()

    def request_stop(self, *_: Any) -> None:
        """The handler of SIGTERM: stops at the next look."""
        self.stop_requested = True

    def _stop_if_requested(self) -> None:
        if self.stop_requested:
            self._save()
            raise Preempted(f"saved at step {self.step}; run the same command to go on")

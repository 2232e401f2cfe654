"""The training loop: chunks of steps, an evaluation each epoch, checkpoints between.

Everything that the result depends on is in the checkpoint or follows from the seed and the step, so
a run that was stopped or killed and then resumed ends bit for bit where it would have ended.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import msgspec
import numpy as np
from jax.sharding import Mesh

from sasnet_jax import cli, files
from sasnet_jax.cli import Preempted, ProgressBar, UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store
from sasnet_jax.model import devices, draws, inputs, network, records, step
from sasnet_jax.model.checkpoint import Checkpoints
from sasnet_jax.model.config import TrainConfig, is_over
from sasnet_jax.model.draws import Data
from sasnet_jax.model.records import Epoch, Progress, RunRecord
from sasnet_jax.model.run import Run
from sasnet_jax.scores import metrics, predictions
from sasnet_jax.train import memory, run_folder
from sasnet_jax.train.factor import choose_factor
from sasnet_jax.train.tensorboard import Scalars

_CHUNK_SECONDS = 1.0  # between two checks of the clock and of SIGTERM
FIRST_STEP = "first step done"  # of this process; scripts/bench_train.py waits for it
Watch: TypeAlias = Callable[[Epoch], bool]


class NotTrainable(UserError):
    """These settings do not go together, or their loss is not finite."""


def train(config: TrainConfig, watch: Watch = lambda record: False) -> None:
    """Trains, or resumes, the run in `config.output`.

    Args:
      config: the settings.
      watch: called with each epoch's line of metrics.jsonl, and first with the last line of a
        resumed run; it ends the training by returning True.

    Raises:
      UserError: the inputs do not fit together, or the folder is in use.
      NotTrainable: the loss is not finite.
      TooLittleMemory: the settings do not fit the device.
      Preempted: SIGTERM came, and everything is saved.
    """
    devices.join(config.coordinator, config.processes, config.process)
    run = Path(config.output)
    with contextlib.ExitStack() as held:
        with devices.stop_together():
            mesh = devices.mesh_for(config.batch_size)
            corpus, stores = _inputs(config)
            files.claim(run, "config.json")
            if devices.is_writer():
                held.enter_context(files.sole_writer(run))
            record = run_folder.describe(config, corpus, stores)
            # A run without a checkpoint has nothing to lose, so it starts anew with these settings.
            if resumed := bool(records.saved_numbers(run)):
                before = files.read_record(run / "config.json", RunRecord)
                run_folder.refuse_other_run(run, before, record)
                transform = before.transform(run)  # it reads its stores as it did before
                models = before.simple_models(run)
            else:
                transform = inputs.fit_transform(config, corpus, stores)
                models = inputs.fit_simple_models(config, corpus, stores, transform)
            memory.refuse_too_large(config, transform.width)
        # A fit on another machine may differ in the last bit, and so in the sign of a direction.
        transform, models = devices.from_writer((transform, models))
        data = inputs.build_data(config, corpus, stores, transform, models)
        if devices.is_writer() and not resumed:
            run_folder.write_inputs(run, record, transform, models)
        with devices.enough_memory(data.tables, memory.with_less(config, data)):
            loop = _Loop(config, mesh, run, data, corpus, watch)
            with cli.on_sigterm(loop.request_stop):
                loop.restore()
                if devices.is_writer() and resumed:
                    run_folder.write_resumed(run, record, before)
                loop.run()
            if loop.stop_requested:  # this run is complete, but its caller may have more to do
                raise Preempted(f"{run} is complete")


def _inputs(config: TrainConfig) -> tuple[Corpus, tuple[Store, ...]]:
    corpus, stores = inputs.open_inputs(config)
    corpus.refuse_missing_class(config.classes)
    if not corpus.rows("validation").size:
        raise UserError(
            f"corpus {corpus.folder} has no validation review, which training needs to stop"
        )
    return corpus, stores


class _Loop:
    """One run in progress."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        run: Path,
        data: Data,
        corpus: Corpus,
        watch: Watch,
    ):
        self.config, self.mesh, self.run_folder, self.watch = config, mesh, run, watch
        self.train_size = corpus.rows("train").size
        self.steps_per_epoch = -(-self.train_size // config.batch_size)
        self.functions = step.build(
            config, mesh, data.embedding_dim, config.epochs * self.steps_per_epoch
        )
        self.data = inputs.on_devices(config, mesh, data)
        self.train_rows = devices.place(mesh, corpus.rows("train"))
        self.validation_rows = corpus.rows("validation")
        self.validation_labels = np.asarray(data.label)[self.validation_rows]
        self.validation_users = corpus.user[self.validation_rows]
        self.checkpoints = Checkpoints(run, keep=config.keep)
        self.stop_requested = False
        self.steps_per_chunk = 1
        self.rate = 0.0  # examples per second in the last chunk
        self.saved_at = time.monotonic()
        self.saved_number = 0  # of steps and evaluations together
        self.shown = ""  # of the last evaluation
        leaky = config.target_review == "include"
        self.title = f"training, {predictions.LEAKY}" if leaky else "training"

    def run(self) -> None:
        """Trains until the last epoch, or until patience ends."""
        try:
            complete = self._finished()
            if not complete:
                self._train()
        finally:
            self.checkpoints.close()
        if devices.is_writer():
            from sasnet_jax.train import plots

            plots.learning_curve(Run(self.run_folder))
            if complete:
                files.say_complete(self.run_folder)
            print(f"{self.title}: best epoch {self._best()} -> {self.run_folder}")

    def _train(self) -> None:
        first = self._epochs()
        # What `watch` returned for the last epoch may have been lost with the process.
        ended = self._watched(self.curve[-1:])
        scalars = Scalars(self.run_folder, first + 1) if devices.is_writer() else None
        with (
            jax.transfer_guard("disallow"),
            ProgressBar(
                total=self.config.epochs,
                initial=first,
                desc=self.title,
                unit="epoch",
                disable=not devices.is_writer(),
            ) as bar,
        ):
            while not ended and not self._finished():
                self._train_epoch(bar)
                epoch = self._evaluate()
                if scalars is not None:
                    self._record(epoch, scalars, bar)
                self._save_or_stop()
                ended = self._watched([epoch])
        self._save()

    def _watched(self, epochs: Sequence[Epoch]) -> bool:
        """Whether `watch` ends the training; the writer decides."""
        ended = any(self.watch(epoch) for epoch in epochs)
        return bool(devices.from_every_process(ended)[0, 0])

    def restore(self) -> None:
        """Restores the latest checkpoint, or starts.

        Raises:
          UserError: the checkpoint does not fit.
        """
        state = jax.device_get(self.functions.init())
        restored = self.checkpoints.restore(state, state.evaluated)
        state, self.best_params, self.progress = restored or (state, state.evaluated, Progress())
        if self.progress.curve is None:  # from an earlier version, or the run starts
            curve = records.read_curve(self.run_folder, self.progress) if restored else []
            curve = curve[: self.progress.epochs_evaluated]
            self.progress = msgspec.structs.replace(self.progress, curve=curve)
        self.step = int(state.step)
        self.state = devices.place(self.mesh, state)
        self.saved_number = self.step + self._epochs()
        if devices.is_writer():
            if self.step:
                print(f"resumed at step {self.step}")
            run_folder.write_metrics(self.run_folder, self.curve)

    def _train_epoch(self, bar: ProgressBar) -> None:
        """Trains to the end of the epoch, a chunk at a time."""
        epoch = self._epochs()
        number = devices.place(self.mesh, np.int32(epoch))
        order = draws.shuffle(self.train_rows, number, self.config.batch_size, self.config.seed)
        index = self.step - epoch * self.steps_per_epoch
        while index < self.steps_per_epoch:
            started = time.monotonic()
            last = min(index + self.steps_per_chunk, self.steps_per_epoch)
            bounds = devices.place(self.mesh, (np.int32(index), np.int32(last)))
            self.state, bad = self.functions.train_chunk(self.state, self.data, order, *bounds)
            bad_step = int(jax.device_get(bad))
            if bad_step >= 0:
                raise NotTrainable(
                    f"the loss is not finite from step {bad_step} on (epoch {epoch + 1}): "
                    "lower --learning_rate, or check the store for extreme values"
                )
            if not self.rate and devices.is_writer():
                ProgressBar.write(f"{FIRST_STEP}, compiled in {time.monotonic() - started:.1f} s")
            self.step += last - index
            per_step = (time.monotonic() - started) / (last - index)
            self.rate = self.config.batch_size / per_step
            # Grows by at most 4 at a time, because the first chunk includes the compilation.
            wanted = max(1, int(_CHUNK_SECONDS / per_step))
            self.steps_per_chunk = min(wanted, 4 * self.steps_per_chunk)
            index = last
            share = index / self.steps_per_epoch
            progress = f"{self.rate:,.0f} examples/s, {share:.0%} of the epoch{self.shown}"
            bar.set_postfix_str(progress, refresh=False)
            bar.update(0)
            self._save_or_stop()

    def _evaluate(self) -> Epoch:
        """Validation metrics and the best so far: the epoch's line of metrics.jsonl."""
        probability = step.predict(
            self.functions,
            self.mesh,
            self.state.evaluated,
            self.data,
            self.validation_rows,
            self._save_or_stop,
        )
        if not np.isfinite(probability).all():
            raise NotTrainable(
                f"the predictions are not finite after step {self.step}: lower --learning_rate"
            )
        factors = network.factors(self.config.offset)
        chosen = choose_factor(probability, self.validation_labels, self.validation_users)
        scores = metrics.summarize(self.validation_labels, probability[:, chosen])
        number, best_epoch = self._epochs() + 1, self.progress.best_epoch
        losses = [
            metrics.log_loss(self.validation_labels, probability[:, i]) for i in range(len(factors))
        ]
        best, loss = self.progress.best_log_loss, min(losses)
        if best is None or loss < best:
            self.best_params = jax.device_get(self.state.evaluated)
            best_epoch, best = number, loss
        epoch = Epoch(
            epoch=number,
            step=self.step,
            target_review=self.config.target_review,
            train_loss=float(jax.device_get(self.state.epoch_loss)) / self.train_size,
            validation_log_loss=losses[chosen],
            validation_accuracy=scores.accuracy,
            validation_macro_f1=scores.macro_f1,
            best_epoch=best_epoch,
            factor=factors[chosen] if self.config.offset else None,
        )
        self.progress = msgspec.structs.replace(
            self.progress,
            epochs_evaluated=number,
            best_epoch=best_epoch,
            best_log_loss=best,
            curve=[*self.curve, epoch],
        )
        return epoch

    def _record(self, epoch: Epoch, scalars: Scalars, bar: ProgressBar) -> None:
        """Adds the epoch to metrics.jsonl, TensorBoard and the progress bar."""
        run_folder.append_metrics(self.run_folder, epoch)
        scalars.write(
            epoch.epoch,
            {
                "train_loss": epoch.train_loss,
                "validation_log_loss": epoch.validation_log_loss,
                "validation_accuracy": epoch.validation_accuracy,
            },
        )
        self.shown = (
            f", loss {epoch.train_loss:.3f}, validation {epoch.validation_log_loss:.3f} / "
            f"{epoch.validation_accuracy:.3f}, best epoch {epoch.best_epoch}"
        )
        bar.update()
        bar.set_postfix_str(f"{self.rate:,.0f} examples/s{self.shown}")

    @property
    def curve(self) -> list[Epoch]:
        """The epochs evaluated."""
        return self.progress.curve or []

    def _finished(self) -> bool:
        return is_over(self.config, self._epochs(), self.progress.best_epoch)

    def _epochs(self) -> int:
        return self.progress.epochs_evaluated

    def _best(self) -> str:
        best = self.curve[self.progress.best_epoch - 1]
        factor = "" if best.factor is None else f", {best.factor:g} x the network"
        return f"{best.epoch}, validation log-loss {best.validation_log_loss:.4f}{factor}"

    def _save(self) -> None:
        number = self.step + self._epochs()
        if number == self.saved_number:
            return
        state = jax.device_get(self.state)
        self.checkpoints.save(self.step, state, self.best_params, self.progress)
        self.saved_at, self.saved_number = time.monotonic(), number

    def request_stop(self, *_: Any) -> None:
        """Handles SIGTERM: training stops at the next check."""
        self.stop_requested = True

    def _save_or_stop(self) -> None:
        """Makes all processes save, stop, or continue with the writer's chunk length, together."""
        overdue = time.monotonic() - self.saved_at > self.config.checkpoint_seconds
        every = devices.from_every_process(self.stop_requested, overdue, self.steps_per_chunk)
        _, overdue, self.steps_per_chunk = every[0].tolist()
        if overdue:
            self._save()
        if every[:, 0].any():
            self._save()
            raise Preempted(f"saved at step {self.step}; run the same command to resume")

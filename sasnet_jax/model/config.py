"""Settings of `python -m sasnet_jax.train`."""

import dataclasses
from typing import Literal

from sasnet_jax import cli
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import CLASS_NAMES
from sasnet_jax.corpus.store import FitOn

CrossAttention = Literal["pooled", "set"]
ReviewFeatures = Literal["text", "text+stars"]

# May differ when a run is resumed: where things lie (their hashes are compared), who works on it,
# and how long it lasts.
RESUMABLE = (
    *("corpus", "store", "output", "epochs", "patience", "checkpoint_seconds", "keep"),
    *("coordinator", "processes", "process"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What to train on, the network, and how long. Defaults are the paper's where it says."""

    corpus: str = setting("", help="corpus folder", topic="data", required=True)
    store: tuple[str, ...] = setting(
        (), help="embedding store of the corpus; repeatable", topic="data", required=True
    )
    pooling: str = setting(
        "", help="pooling to read from the stores; empty = each store's default", topic="data"
    )
    output: str = setting(
        "", help="run folder to write; the same command resumes it", topic="data", required=True
    )
    target_review: TargetReview = setting(
        "exclude", help="whether the sets hold the review to predict", topic="data"
    )
    fit_on: FitOn = setting("train", help="reviews that the z-score is fitted on", topic="data")
    discriminants: int = setting(
        0,
        help="directions kept per store, for users and for businesses; 0 = all",
        topic="data",
        minimum=0,
    )
    set_size: int = setting(5, help="reviews per sampled set", topic="data", minimum=1)
    eval_sets: int = setting(
        8, help="draws of the sets that an evaluation averages over", topic="data", minimum=1
    )
    eval_set_size: int = setting(
        0,
        help="reviews per set at evaluation; 0 = as in training",
        topic="data",
        extra=True,
        minimum=0,
    )
    empty_side: float = setting(
        0.05,
        help="probability that a side is emptied in training",
        topic="data",
        extra=True,
        minimum=0,
        below=1,
    )
    classes: int = setting(3, help="3 (bad, good, excellent) or 5 (stars)", topic="network")
    cross_attention: CrossAttention = setting(
        "pooled", help="attend after pooling (paper), or review by review", topic="network"
    )
    review_features: ReviewFeatures = setting(
        "text", help="what the model sees of each review in a set", topic="network"
    )
    bias_term: bool = setting(
        False, help="add how the other reviews were rated to the inputs", topic="network"
    )
    crossed_bias: bool = setting(
        False,
        help="add how kind the user is and how well liked the business, each given the other",
        topic="network",
        extra=True,
    )
    votes: bool = setting(
        False,
        help="add how the reviews most like the other side's were rated",
        topic="network",
        extra=True,
    )
    offset: bool = setting(
        False,
        help="learn what a regression on the same inputs leaves over; may end as the regression",
        topic="network",
        extra=True,
    )
    match: bool = setting(
        False,
        help="add the averages of both sides and their product to the inputs",
        topic="network",
    )
    review_loss: float = setting(
        0.0,
        help="weight of the loss on each review's own rating",
        topic="training",
        extra=True,
        minimum=0,
    )
    encoder: bool = setting(
        True,
        help="encode the sets by attention; false = the DeepSets ablation",
        topic="network",
        extra=True,
    )
    width: int = setting(256, help="model width d", topic="network", minimum=1)
    depth: int = setting(2, help="number of set attention blocks", topic="network", minimum=1)
    heads: int = setting(4, help="number of attention heads", topic="network", minimum=1)
    feed_forward: int = setting(
        1024, help="hidden width f of each block", topic="network", minimum=1
    )
    dropout: float = setting(
        0.2, help="dropout probability", topic="network", minimum=0, maximum=0.99
    )
    batch_size: int = setting(512, help="target reviews per step", topic="training", minimum=1)
    epochs: int = setting(3000, help="largest number of epochs", topic="training", minimum=1)
    patience: int = setting(
        150,
        help="epochs without a better validation loss before training stops",
        topic="training",
        minimum=1,
    )
    learning_rate: float = setting(
        3e-4, help="learning rate of AdamW after the warm-up", topic="training", above=0
    )
    schedule: Literal["constant", "cosine"] = setting(
        "constant",
        help="course of the learning rate after the warm-up",
        topic="training",
        extra=True,
    )
    warmup_steps: int = setting(
        100, help="number of linear warm-up steps", topic="training", extra=True, minimum=0
    )
    weight_decay: float = setting(
        0.01, help="weight decay of AdamW", topic="training", extra=True, minimum=0
    )
    clip_norm: float = setting(
        1.0, help="norm that larger gradients are clipped to", topic="training", extra=True, above=0
    )
    average_decay: float = setting(
        0.0,
        help="decay of the weights' moving average, used to predict; 0 = none",
        topic="training",
        extra=True,
        minimum=0,
        below=1,
    )
    table: Literal["device", "sharded", "host"] = setting(
        "device", help="where the embeddings are held", topic="training"
    )
    checkpoint_seconds: float = setting(
        60.0, help="seconds between checkpoints", topic="training", extra=True, minimum=0
    )
    keep: int = setting(
        2, help="number of latest checkpoints to keep", topic="training", extra=True, minimum=1
    )
    coordinator: str = setting(
        "", help="HOST:PORT of process 0, if several processes train", topic="processes", extra=True
    )
    processes: int = setting(
        1, help="number of processes that train together", topic="processes", extra=True, minimum=1
    )
    process: int = setting(0, help="number of this process, from 0", topic="processes", extra=True)
    seed: int = setting(
        0, help="seed of initialization, sets and dropout", topic="training", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant, naming the flag."""
        cli.check(self)
        if self.review_loss and self.target_review == "include":
            raise UserError(
                f"--review_loss={self.review_loss} would learn held-out ratings under "
                "--target_review=include: use --review_loss=0"
            )
        for name in ("votes", "offset"):
            if getattr(self, name) and not self.discriminants:
                raise UserError(f"--{name} reads discriminants: give --discriminants=24")
        for name in ("crossed_bias", "offset"):
            if getattr(self, name) and self.target_review == "include":
                raise UserError(
                    f"--{name} is computed without the target in training, so it cannot be had "
                    "with --target_review=include"
                )
            if getattr(self, name) and self.empty_side:
                raise UserError(
                    f"--{name} knows both sides whole, so none can be emptied: give --empty_side=0"
                )
        if self.classes not in CLASS_NAMES:
            raise UserError(
                f"--classes={self.classes} is neither 3 (bad, good, excellent) nor 5 (stars)"
            )
        if self.width % self.heads:
            raise UserError(f"--width={self.width} is not a multiple of --heads={self.heads}")
        if not 0 <= self.process < self.processes:
            raise UserError(
                f"--process={self.process} is not from 0 to {self.processes - 1}, as --processes="
                f"{self.processes} requires"
            )
        if self.processes > 1 and not self.coordinator:
            raise UserError(
                f"--coordinator=HOST:PORT is required with --processes={self.processes}"
            )

    @property
    def sees_stars(self) -> bool:
        """Whether the stars of other reviews are among the inputs ("text+stars")."""
        rated = self.bias_term or self.crossed_bias or self.votes
        return rated or self.review_features == "text+stars"


def is_over(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    """Whether `epoch` (from 1) is the last one, or patience is at its end."""
    return epoch >= config.epochs or epoch - best_epoch >= config.patience

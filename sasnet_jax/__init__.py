"""SASNet: how a user will like a business, from two sets of embedded reviews (JAX and Flax).

As a library (docs/library.md):

    run = sasnet_jax.load_run("work/quickstart/runs/sasnet")
    alice = sasnet_jax.Reviews(vectors)  # float32 [n, e], from embed_torch.load_encoder(...)
    run.predictor().score([alice], run.businesses())  # [users, businesses, classes]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sasnet_jax.cli import UserError
    from sasnet_jax.model.predictor import NeedsStars, Predictor, WrongEncoder
    from sasnet_jax.model.run import Run, load_run
    from sasnet_jax.model.sets import Reviews

__version__ = "0.1.0"
__all__ = ["NeedsStars", "Predictor", "Reviews", "Run", "UserError", "WrongEncoder", "load_run"]

# Loaded when first asked for, so that a command waits for what it needs only.
_MODULES = {
    "NeedsStars": "sasnet_jax.model.predictor",
    "Predictor": "sasnet_jax.model.predictor",
    "Reviews": "sasnet_jax.model.sets",
    "Run": "sasnet_jax.model.run",
    "UserError": "sasnet_jax.cli",
    "WrongEncoder": "sasnet_jax.model.predictor",
    "load_run": "sasnet_jax.model.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

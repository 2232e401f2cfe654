"""Embeds review texts once, by PyTorch, into a store of NumPy memory maps.

`load_encoder` and `Encoder` are the library (docs/library.md); they are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed_torch.encoder import Encoder, load_encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embed_torch import encoder

    return getattr(encoder, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

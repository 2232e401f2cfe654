"""Random streams, and sets drawn from contexts inside jit (paper section 2.4; docs/design.md 4.4).

Every stream is a function of seed, name and step, so none is ever saved.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, Key

from sasnet_jax.corpus.contexts import Context


def stream(seed: int, name: str) -> Key[Array, ""]:
    """The key of a named stream; fold in the step."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def sample_positions(
    key: Key[Array, ""], count: Int[Array, ""], size: int
) -> tuple[Int32[Array, "s"], Bool[Array, "s"]]:
    """A uniformly random subset of {0, ..., count - 1} with min(count, size) members.

    Floyd's algorithm (Bentley and Floyd 1987): every subset is equally likely, at a cost of
    O(size^2) for any count.

    Returns:
      The members in no particular order, 0 beyond them; and True for each member.
    """
    taken = jnp.minimum(count, size)
    step = jnp.arange(size)
    last = count - taken + step  # the step draws from {0, ..., last}
    draws = jax.random.randint(key, (size,), 0, jnp.maximum(last, 0) + 1)
    mask = step < taken

    def place(i, chosen):
        member = jnp.where((chosen == draws[i]).any(), last[i], draws[i])
        return chosen.at[i].set(jnp.where(mask[i], member, -1))

    chosen = jax.lax.fori_loop(0, size, place, jnp.full(size, -1))
    return jnp.where(mask, chosen, 0).astype(jnp.int32), mask


def sample_set(
    key: Key[Array, ""], context: Context, target: Int[Array, ""], size: int
) -> tuple[Int32[Array, "s"], Bool[Array, "s"]]:
    """Draws up to `size` distinct reviews of the target's context: their rows, and the mask.

    Where the mask is False the row is that of some review of the corpus: finite, and
    to be ignored.
    """
    positions, mask = sample_positions(key, context.size[target], size)
    positions += positions >= context.skip[target]
    listed = jnp.asarray(context.rows)
    rows = listed.at[context.start[target] + positions].get(mode="clip")
    return rows, mask

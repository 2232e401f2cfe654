"""Plans batches: texts of similar length together, within a budget of tokens."""

from collections.abc import Sequence

_ON_CPU = 4096  # the states of a block stay in the cache
_ON_GPU = 32768
_LEAST = 256


def tokens_in_a_batch(batch_tokens: int, device_type: str) -> int:
    """The number of tokens that --batch_tokens means; 0 stands for a good value."""
    return batch_tokens or (_ON_GPU if device_type == "cuda" else _ON_CPU)


def least_tokens(inputs: Sequence[int]) -> int:
    """The tokens from which on a batch's size does not change the bits of its states on a CPU.

    MKL sums a matrix product in another order if there are few rows: fewer than 16, or, as it then
    divides the inputs among threads, up to an eighth of their number (measured, version 2024.2).

    Args:
      inputs: the number of inputs of each linear layer.

    Returns:
      0 without linear layers.
    """
    return max([_LEAST, *(size // 8 + 1 for size in inputs)]) if inputs else 0


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, apart_above: int | None
) -> list[list[int]]:
    """Groups rows into batches.

    The plan depends on the arguments only. The longest rows come first, so that a batch too large
    for the memory is met at the start, and rows of one length are neighbors.

    Args:
      lengths: tokens of each row.
      batch_tokens: the most tokens in a batch; a longer row is a batch of its own.
      apart_above: rows longer than this share no batch with others: Phi-3's long-context models
        rotate all positions of a batch differently if one of its rows is longer.

    Returns:
      Rows of each batch; every row is in one batch.
    """
    batches: list[list[int]] = []
    tokens, batch_is_long = 0, False
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        is_long = apart_above is not None and lengths[row] > apart_above
        if not batches or is_long != batch_is_long or tokens + lengths[row] > batch_tokens:
            batches.append([])
            tokens, batch_is_long = 0, is_long
        batches[-1].append(row)
        tokens += lengths[row]
    return batches


def halves(name: str, rows: list[int]) -> dict[str, list[int]]:
    """The two halves, by name, of a batch that did not fit into memory."""
    middle = (len(rows) + 1) // 2
    return {f"{name}.0": rows[:middle], f"{name}.1": rows[middle:]}

"""Plans batches: texts of like length together, within a budget of tokens."""

from collections.abc import Sequence


def plan_batches(token_counts: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups rows so that padding to the longest of a batch wastes little.

    The plan depends on the counts and the budget only. Longest first, so that a batch too large for
    the memory is met at the start.

    Args:
      token_counts: tokens of each row.
      batch_tokens: the most tokens in a batch, padding included; a longer row stands alone.

    Returns:
      Rows of each batch; every row is in one batch.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(token_counts)), key=lambda row: (-token_counts[row], row)):
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = token_counts[row]
        batches[-1].append(row)
    return batches

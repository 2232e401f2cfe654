"""Which inputs share a batch."""

import numpy as np
import pytest
import torch
import transformers
import written_checkpoints

from embed_torch import attention, packing


@pytest.mark.parametrize("apart_above", [None, 50])
@pytest.mark.parametrize("budget", [1, 50, 333, 10**6])
def test_batches_hold_every_row_once_within_the_budget(budget, apart_above):
    lengths = np.random.default_rng(1).integers(1, 100, 500).tolist()
    batches = packing.plan_batches(lengths, budget, apart_above)
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget
        if apart_above:
            assert len({lengths[row] > apart_above for row in batch}) == 1
    assert packing.plan_batches(lengths, budget, apart_above) == batches


def test_batches_are_full_and_the_longest_come_first():
    lengths = np.random.default_rng(2).integers(5, 250, 2000).tolist()
    batches = packing.plan_batches(lengths, 8192, None)
    assert len(batches) <= 1 + sum(lengths) / (8192 - 250)
    longest = [lengths[row] for batch in batches for row in batch]
    assert longest == sorted(lengths, reverse=True)


def test_halves_hold_every_row_once():
    assert packing.halves("3", [5, 6, 7]) == {"3.0": [5, 6], "3.1": [7]}


def test_a_long_text_turns_the_positions_of_its_whole_batch(tmp_path):
    """Why the plan keeps the two kinds apart: otherwise a short text's states would change."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8}
    rope |= {"long_factor": [4.0] * 8, "original_max_position_embeddings": 16}
    written_checkpoints.write_phi3(
        tmp_path / "m", rope_parameters=rope, original_max_position_embeddings=16
    )
    network = transformers.AutoModel.from_pretrained(tmp_path / "m")
    attention.use_packed_attention(network)
    short, long = list(range(3, 13)), list(range(3, 43))
    mixed = attention.states_of(network, [long, short])[0][40:]
    alone = attention.states_of(network, [short])[0]
    assert (mixed - alone).abs().max() > 1e-2
    batches = packing.plan_batches([40, 10], 100, 16)
    texts = [long, short]
    (found,) = (attention.states_of(network, [texts[i] for i in b])[0] for b in batches if 1 in b)
    assert torch.equal(found, alone)

"""Global magnitude pruning: exact counts, nested masks, ties by index, and an end when nothing can be removed."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imp_runs.config import Protocol
from imp_runs.imp import run_trajectory
from imp_runs.prune import prune
from imp_runs.store import Store

# Few distinct magnitudes, so that most draws have ties; both signs and both zeros.
TIED = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1e-38, 2.0])
FREE = st.floats(-10, 10, width=32)


@st.composite
def situations(draw):
    """Draw weights, a mask over them, and how many to keep."""
    weights = draw(st.lists(st.one_of(TIED, FREE), min_size=1, max_size=60))
    mask = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(weights), max_size=len(weights)))
    return torch.tensor(weights), torch.tensor(mask), draw(st.integers(0, int(sum(mask))))


@given(situations())
def test_the_number_kept_is_exact_and_the_mask_nested(situation):
    weights, mask, kept = situation
    before = weights.clone(), mask.clone()
    pruned = prune(weights, mask, kept)
    assert pruned.shape == mask.shape
    assert pruned.dtype == mask.dtype
    assert set(pruned.tolist()) <= {0.0, 1.0}
    assert int(pruned.sum()) == kept
    assert bool((pruned <= mask).all())
    assert torch.equal(weights, before[0])
    assert torch.equal(mask, before[1])


@given(situations())
def test_what_stays_is_what_sorting_by_magnitude_then_index_keeps(situation):
    weights, mask, kept = situation
    there = [i for i, m in enumerate(mask.tolist()) if m]
    stays = sorted(there, key=lambda i: (-abs(weights[i].item()), i))[:kept]
    assert prune(weights, mask, kept).nonzero().flatten().tolist() == sorted(stays)


@given(st.integers(1, 50), st.data())
def test_of_equal_weights_the_first_ones_stay(size, data):
    kept = data.draw(st.integers(0, size))
    mask = prune(torch.full((size,), -0.25), torch.ones(size), kept)
    assert mask.tolist() == [1.0] * kept + [0.0] * (size - kept)


@given(st.lists(TIED, min_size=1, max_size=200), st.integers(0, 2**31))
@settings(max_examples=50)
def test_rounds_follow_integer_arithmetic_until_nothing_can_be_removed(values, seed):
    weights, generator = torch.tensor(values), torch.Generator().manual_seed(seed)
    protocol, mask, kept = Protocol(), torch.ones(len(values)), len(values)
    while (following := protocol.kept_after(kept)) < kept:
        assert following == kept - kept // 5
        after = prune(weights, mask, following)
        assert int(after.sum()) == following
        assert bool((after <= mask).all())
        # Between two rounds the network is trained: what is there gets other values.
        mask, kept = after, following
        weights = weights[torch.randperm(len(values), generator=generator)] * mask
    assert kept < 5


@pytest.mark.parametrize("kept", [-1, 3])
def test_a_number_that_cannot_be_kept_is_refused(kept):
    with pytest.raises(ValueError, match=f"kept = {kept} must be between 0 and the 2 weights that are there"):
        prune(torch.ones(3), torch.tensor([1.0, 0.0, 1.0]), kept)


def followed(trajectory, dataset, store):
    """Run a trajectory and collect the mask of every level from the checkpoints it writes on the way."""
    masks = {}

    def look(_levels):
        if checkpoint := store.read_checkpoint(trajectory.key):
            masks[checkpoint.level] = checkpoint.mask

    run_trajectory(trajectory, dataset, store, progress=look)
    return masks, store.records(trajectory.key)


def test_a_network_too_small_to_prune_further_ends_its_trajectory_cleanly(toy, digits, tmp_path):
    trajectory = toy("mlp", width=1, epochs=1, levels=30)
    store = Store(tmp_path, trajectory.protocol)
    masks, records = followed(trajectory, digits, store)

    counts = [64 * 1 + 1 * 10]
    while counts[-1] // 5:
        counts.append(counts[-1] - counts[-1] // 5)
    assert [r["kept"] for r in records] == counts
    assert counts[-1] < 5
    assert [r["level"] for r in records] == list(range(len(counts)))
    assert len(counts) < 31  # it ended before the protocol's last level
    assert [r["status"] for r in records] == ["trained"] * (len(counts) - 1) + ["exhausted"]
    assert store.is_done(trajectory.key)
    done = json.loads((store.folder(trajectory.key) / "done.json").read_text())
    assert done.items() >= {"levels": len(counts) - 1, "status": "exhausted"}.items()

    assert sorted(masks) == list(range(1, len(counts)))
    for level, mask in masks.items():
        assert int(mask.sum()) == counts[level]
        assert level == 1 or bool((mask <= masks[level - 1]).all())


def test_a_trajectory_that_reaches_the_last_level_says_trained(toy, digits, tmp_path):
    trajectory = toy("cifar_resnet", epochs=1, levels=2)
    masks, records = followed(trajectory, digits, Store(tmp_path, trajectory.protocol))
    assert [r["status"] for r in records] == ["trained"] * 3
    assert [r["kept"] for r in records] == [347, 347 - 69, 278 - 55]
    assert [int(masks[level].sum()) for level in (1, 2)] == [278, 223]
    assert bool((masks[2] <= masks[1]).all())
    for record in records:
        assert sum(record["kept_by_layer"]) == record["kept"]
        assert record["density"] == record["kept"] / 347
        assert record["nonzero"] == record["kept"] + 52


def test_no_pruning_at_all_is_one_level(toy, digits, tmp_path):
    trajectory = toy("mlp", levels=0, epochs=1)
    masks, records = followed(trajectory, digits, Store(tmp_path, trajectory.protocol))
    assert masks == {}
    assert [(r["level"], r["density"], r["status"]) for r in records] == [(0, 1.0, "trained")]

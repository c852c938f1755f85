"""The batch of networks: pairs, symmetry, independence, and that it learns."""

import numpy as np
import pytest
import torch

from analyses.studies.complexity.network import (
    LEVELS,
    NetworkCurveOptions,
    fraction_at,
    network_curve,
    train_batch,
    training_masks,
)
from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup


def test_masks_hold_the_share_and_mirror():
    fractions = np.array([0.25, 0.5])
    masks = training_masks(6, fractions, mirrored=False, rng=np.random.default_rng(0))
    assert masks.sum(dim=(1, 2)).tolist() == [9, 18]
    both = training_masks(6, fractions, mirrored=True, rng=np.random.default_rng(0))
    assert torch.equal(both, masks | masks.transpose(1, 2))


def test_networks_in_a_batch_do_not_influence_one_another():
    options = NetworkCurveOptions(FiniteAbelianGroup((5,)), width=12, steps=40)
    masks = training_masks(5, np.full(3, 0.6), mirrored=False, rng=np.random.default_rng(1))
    changed = masks.clone()
    changed[2] = ~changed[2]
    before = train_batch(options, masks, tied=False, seed=0)
    after = train_batch(options, changed, tied=False, seed=0)
    assert torch.equal(before[:2], after[:2])


def test_tied_networks_are_symmetric_and_learn():
    options = NetworkCurveOptions(FiniteAbelianGroup((5,)), width=32, steps=600)
    masks = torch.ones(2, 5, 5, dtype=torch.bool)
    correct = train_batch(options, masks, tied=True, seed=0)
    assert torch.equal(correct, correct.transpose(1, 2))
    assert correct.float().mean() > 0.95


def test_fraction_at_interpolates_and_admits_ignorance():
    fractions = np.array([0.2, 0.4, 0.6, 0.8])
    assert fraction_at(fractions, np.array([0.0, 0.4, 0.6, 1.0])) == pytest.approx([0.5, 0.75])
    assert np.isnan(fraction_at(fractions, np.array([0.0, 0.1, 0.2, 0.3]))).all()
    assert len(LEVELS) == 2


def test_curve_document_and_bad_fractions():
    found = network_curve("Z5", seeds=3, steps=150, width=16, fractions=(0.4, 0.9))
    assert len(found["curves"]) == 3
    assert all(p["low"] <= p["accuracy"] <= p["high"] for c in found["curves"] for p in c["points"])
    with pytest.raises(InputError, match="fractions"):
        network_curve("Z5", fractions=(1.0,))

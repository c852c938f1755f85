"""Rotations and frames, where measures are fitted by sampling: closed forms and one-dimensional integrals."""

import numpy as np
import pytest
import torch
from scipy.special import ive

from manifold.errors import InputError
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.sampled_fits import fit_by_sampling
from manifold.sampling.tempered_hmc import TemperedSampler
from manifold.spaces.embedded import SpecialOrthogonal, Stiefel, parse_space
from manifold.spaces.monomial_expressions import parse_monomials


def fisher_on_rotations(kappa):
    """log Z and E tr R of exp(kappa tr R) on SO(3).

    The rotation angle has density (1 - cos t)/pi, so Z = e^kappa (I_0(2 kappa) - I_1(2 kappa)).
    """

    def log_z(k):
        return np.log(ive(0, 2 * k) - ive(1, 2 * k)) + 3 * k

    return log_z(kappa), (log_z(kappa + 1e-5) - log_z(kappa - 1e-5)) / 2e-5


def fisher_on_frames(kappa):
    """log Z of exp(kappa (X_11 + X_22)) on V(3, 2).

    In Euler angles X_11 + X_22 = (1 + cos b) cos(a + c), so Z = (1/2) integral I_0(kappa (1 + t)) dt.
    """
    t, w = np.polynomial.legendre.leggauss(60)
    return np.log(w @ (ive(0, kappa * (1 + t)) * np.exp(kappa * (t - 1))) / 2) + 2 * kappa


def test_names():
    assert parse_space("so3") == SpecialOrthogonal(3)
    assert parse_space("V4,2") == Stiefel(4, 2)
    assert parse_space("S2xSO3").ambient == 12
    with pytest.raises(InputError, match="SO<d>"):
        parse_space("V4")


@pytest.mark.parametrize("name", ["SO3", "V3,2"])
def test_uniform_moments(name):
    """E R_11^2 = 1/3, E R_11^2 R_22^2 = 2/15, E R_11 R_22 R_12 R_21 = -1/30, by invariance."""
    space = parse_space(name)
    p = 3 if name == "SO3" else 2
    x = space.uniform(200_000, generator=torch.Generator().manual_seed(1)).numpy().reshape(-1, 3, p)
    tested = {1 / 3: x[:, 0, 0] ** 2, 2 / 15: x[:, 0, 0] ** 2 * x[:, 1, 1] ** 2,
              -1 / 30: x[:, 0, 0] * x[:, 1, 1] * x[:, 0, 1] * x[:, 1, 0]}  # fmt: skip
    for exact, values in tested.items():
        assert abs(values.mean() - exact) < 4.5 * values.std() / np.sqrt(len(values))


def test_fisher_law_on_rotations():
    space = SpecialOrthogonal(3)
    found = TemperedSampler(space, parse_monomials("x1;x5;x9", space), columns=48).run(
        [2.0, 2.0, 2.0], sweeps=120, warmup=30
    )
    log_z, trace = fisher_on_rotations(2.0)
    assert found.converged
    assert abs(found.log_partition - log_z) < 4 * found.log_partition_error + 1e-3
    assert (np.abs(found.mean - trace / 3) < 4 * found.standard_error).all()


def test_fisher_law_on_frames_is_fitted():
    space = Stiefel(3, 2)
    kappa, step = 1.5, 1e-5
    moment = (fisher_on_frames(kappa + step) - fisher_on_frames(kappa - step)) / (4 * step)
    found = fit_by_sampling(space, parse_monomials("x1;x4", space), [moment, moment], tol=0.1)
    assert (np.abs(found.lam - kappa) < 4 * found.lambda_error).all()
    assert found.entropy == pytest.approx(fisher_on_frames(kappa) - 2 * kappa * moment, abs=0.05)


def test_dependent_monomials_are_named():
    space = SpecialOrthogonal(3)
    with pytest.raises(InputError, match="dependent on SO3"):
        fit_by_sampling(space, parse_monomials("x1^2;x2^2;x3^2", space), [0.3, 0.3, 0.4])


def test_quadrature_sends_to_the_sampler():
    space = SpecialOrthogonal(3)
    with pytest.raises(InputError, match="sampling"):
        MaxEntFamily(space, parse_monomials("x1", space))

import numpy as np
import pytest
import torch
from scipy.special import gamma

from manifold.errors import InputError, NotConvergedError, NotIntegrableError
from manifold.maxent.euclidean import check_integrable, cumulants
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials


def monomials(space, text):
    return parse_monomials(text, parse_space(space))


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_gaussian(dimension):
    text = ";".join(f"x{i + 1}^2" for i in range(dimension)) + ";x1"
    precision = np.array([2.0, 0.7, 5.0])[:dimension]
    found = cumulants(monomials(f"R{dimension}", text), [*(-precision / 2), 1.5])
    log_z = (np.log(2 * np.pi / precision) / 2).sum() + 1.5**2 / (2 * precision[0])
    assert found.log_partition == pytest.approx(log_z, abs=1e-10)
    assert found.mean[-1] == pytest.approx(1.5 / precision[0], abs=1e-10)
    assert found.covariance[-1, -1] == pytest.approx(1 / precision[0], abs=1e-9)


def test_quartic_on_the_line():
    found = cumulants(monomials("R1", "x1^4"), [-1.0])
    assert found.log_partition == pytest.approx(np.log(2 * gamma(1.25)), abs=1e-10)
    assert found.mean[0] == pytest.approx(0.25, abs=1e-10)


@pytest.mark.parametrize(
    ("text", "lam"),
    [
        ("x1*x2*x3", [1.0]),
        (
            "x1^2;x2^2;x3^2;x1*x2*x3",
            [-1.0, -1.0, -1.0, 1e-3],
        ),  # a Gaussian factor does not help an odd degree
        ("x1^2;x2^2", [-1.0, -1.0]),  # flat along x3
        ("x1^4;x2^4;x3^4;x1^2*x2^2", [-1.0, -1.0, -1.0, 2.1]),
        ("x1", [0.0]),
    ],
)
def test_not_integrable_names_a_direction(text, lam):
    functions = monomials("R3", text)
    with pytest.raises(NotIntegrableError, match=r"integrable|infinite mass") as caught:
        check_integrable(functions, lam)
    far = 1e5 * torch.as_tensor(np.asarray(caught.value.direction))[None].to(torch.float64)
    assert (functions.values(far).numpy() @ np.array(lam))[0] >= -1e-3


def test_too_many_dimensions():
    text = ";".join(f"x{i}^2" for i in range(1, 5))
    with pytest.raises(InputError, match="R4"):
        cumulants(monomials("R4", text), [-1.0] * 4)


def test_a_well_far_from_the_origin_is_found():
    """exp(-(x^2 - 25)^2) falls by 625 on the way from the well to the origin, where the search began."""
    found = cumulants(monomials("R1", "x1^2;x1^4"), [50.0, -1.0])
    x = np.linspace(4, 6, 200001)
    exact = np.log(2 * np.trapezoid(np.exp(-((x**2 - 25) ** 2)), x)) + 625
    assert found.log_partition == pytest.approx(exact, abs=1e-9)
    assert abs(found.log_partition - exact) < found.log_partition_error + 1e-9


def test_rules_that_disagree_are_refused():
    with pytest.raises(NotConvergedError, match="differ"):
        cumulants(monomials("R2", "x1^2;x2^2;x1^4;x2^4"), [4e5, -1.0, -200.0, -1.0])

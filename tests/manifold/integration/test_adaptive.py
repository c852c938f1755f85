"""Which rule is taken for a lambda, and the errors that are stated with it, by the limits written out."""

from types import SimpleNamespace

import numpy as np
import pytest

from manifold.errors import NotConvergedError, TooLargeError
from manifold.integration.adaptive import COARSE, FINE, AdaptiveIntegrator
from manifold.integration.products import MAX_NODES, Cumulants, Rule
from manifold.maxent.family import components
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials

EPS = np.finfo(float).eps
NODE = 3 * float(np.finfo(np.longdouble).eps)


def integrator(space, monomials):
    place = parse_space(space)
    ((_, terms),) = components(parse_monomials(monomials, place), place)
    return AdaptiveIntegrator(terms)


@pytest.mark.parametrize("tol", [FINE, COARSE])
@pytest.mark.parametrize(("growth", "extra"), [(1.0, 0), (1.1, 2), (1.0, 2), (1.2, 0)])
def test_a_proven_rule_and_its_errors(tol, growth, extra):
    tested, lam = integrator("S2xS1", "x1*x2*x4;x3;x4^2"), np.array([2.0, -3.0, 0.5])
    found, rule = tested.cumulants(lam, order=2, tol=tol, growth=growth, extra=extra)
    degrees = tested.harmonics.degrees
    counts = [
        tested.harmonics.nodes(lam, a, 0.01 * tol, extra=2 * degree) for a, degree in enumerate(degrees)
    ]
    more = [2 * int(np.ceil(growth * n / 2)) + extra for n in counts]
    assert rule.sizes == tuple(n // (1 + half) for n, half in zip(more, tested.half, strict=True))
    ranges = tested.harmonics.ranges
    quadrature = 0.01 * tol * len(counts) + NODE * max(counts) ** 2
    rounding = 16 * EPS * (1 + np.abs(lam) @ ranges)
    assert found.errors.log_partition == pytest.approx(quadrature + rounding, rel=1e-12, abs=0)
    assert found.errors.absolute == pytest.approx((2 * quadrature + 16 * EPS) * ranges, rel=1e-12, abs=0)
    assert found.errors.relative == pytest.approx([2 * rounding] * 3, rel=1e-12, abs=0)
    assert (found.errors.ranges == ranges).all()
    assert found.covariance.shape == (3, 3)
    assert tested.cumulants(lam, tol=tol)[0].covariance is None
    exact = tested.cumulants(lam, tol=1e-3 * tol)[0]
    assert abs(found.log_partition - exact.log_partition) <= found.log_partition_error
    assert (np.abs(found.mean - exact.mean) <= found.mean_error).all()


def test_the_last_proven_rule_is_kept_where_it_suffices():
    tested = integrator("T1", "Re(z1)")
    first = tested.cumulants(np.array([5.0]))[1].sizes
    assert tested.cumulants(np.array([4.9]))[1].sizes == first
    assert tested.cumulants(np.array([0.1]))[1].sizes < first


@pytest.mark.parametrize(
    ("space", "monomials", "boxes"),
    [
        ("T3", "Re(z1*z2*z3)", None), ("T1", "Re(z1)", True),
        ("T3", "Re(z1);Re(z1*z2);Re(z2*z3)", True), ("T4", "Re(z1);Re(z1*z2);Re(z2*z3);Re(z3*z4)", False),
        # 141^2, 143 * 141 modes
        ("T2", "Re(z1^70);Re(z1*z2);Re(z2^70)", True), ("S2", "x3^71;x1*x3;Re(z1^70)", False),
    ],
)  # fmt: skip
def test_boxes_are_for_few_axes_with_few_harmonics(space, monomials, boxes):
    tested = integrator(space, monomials)
    if boxes is not None:
        assert (tested.boxes is not None) is boxes
    else:
        assert len(tested.axes) == 1  # one combination of the phases is seen


class Asked:
    """Boxes that note what they were asked for, and answer or refuse."""

    def __init__(self, log_error=-30.0, refuse=False):
        self.log_error, self.refuse, self.asked = log_error, refuse, []

    def cumulants(self, lam, **options):
        self.asked.append(options)
        if self.refuse:
            raise TooLargeError("no")
        return Cumulants(1.5, np.zeros(1), None, ()), self


def chosen(counts, *, nodes=None, boxes=None, **options):
    """What `cumulants` takes where a global rule needs these node counts."""
    tested = integrator("T1", "Re(z1)")
    tested.boxes = boxes
    wanted = iter(counts)
    tested._degrees = [1] * len(counts)
    tested.harmonics.nodes = lambda lam, a, tol, extra: next(wanted)
    tested._nodes = lambda needed: float(np.prod(needed)) if nodes is None else nodes
    tested._proven = lambda lam, counts, order, growth, extra, error: ("proven", error)
    tested._needed = lambda lam, tol: "needed"
    tested.rule_for = lambda lam, needed, tol: SimpleNamespace(sizes=(needed, tol))
    tested._grown = lambda rule, growth, extra: SimpleNamespace(sizes=("grown", growth, extra))
    tested._verified = lambda lam, rule, order: ("verified", rule.sizes, order)
    tested.integrator.evaluate = lambda lam, rule, order: Cumulants(0.0, np.zeros(1), order, ())
    return tested.cumulants(np.array([2.0]), **options)


def test_small_global_rules_need_no_boxes():
    refused = Asked(refuse=True)
    assert chosen([128], boxes=refused) == ("proven", pytest.approx(1e-16 + NODE * 128**2, rel=1e-12, abs=0))
    assert chosen([20, 40], boxes=refused, nodes=3e5)[0] == "proven"
    assert not refused.asked
    with pytest.raises(TooLargeError):
        chosen([20, 130], boxes=refused, nodes=MAX_NODES)  # one axis of many nodes is enough
    assert len(refused.asked) == 1


@pytest.mark.parametrize("counts", [[130], [20, 40]])
def test_larger_ones_are_left_to_boxes(counts):
    nodes = None if len(counts) == 1 else 3e5 + 1
    for log_error, quadrature in ((-30.0, np.exp(-31.5)), (1.5, 1.0), (9.0, 1.0)):
        boxes = Asked(log_error)
        found, rule = chosen(counts, boxes=boxes, nodes=nodes, order=2, tol=COARSE, growth=1.1, extra=2)
        assert rule is boxes
        assert boxes.asked == [{"order": 2, "tol": COARSE, "growth": 1.1, "extra": 2}]
        assert found.errors.log_partition == pytest.approx(quadrature + 16 * EPS * 3, rel=1e-9, abs=0)
        assert found.errors.absolute == pytest.approx([2 * quadrature + 16 * EPS], rel=1e-9, abs=0)


def test_where_boxes_do_not_fit_a_global_rule_may():
    refused = Asked(refuse=True)
    assert chosen([1000], boxes=refused, nodes=MAX_NODES / 4)[0] == "proven"
    assert len(refused.asked) == 1
    with pytest.raises(TooLargeError, match="no"):
        chosen([1000], boxes=refused, nodes=MAX_NODES / 4 + 1)


def test_many_axes_have_a_proven_rule_or_one_from_slices():
    assert chosen([256, 4], nodes=5e6)[0] == "proven"
    assert chosen([256, 4], nodes=5e6 + 1) == ("verified", ("needed", FINE), 1)
    assert chosen([4, 258], nodes=10.0) == ("verified", ("needed", FINE), 1)
    assert chosen([258], nodes=10.0, order=2) == ("verified", ("needed", FINE), 2)
    for growth, extra in ((1.1, 0), (1.0, 2)):
        found = chosen([258], growth=growth, extra=extra)
        assert found == ("verified", ("grown", growth, extra), 1)
    for options in ({"verify": False}, {"tol": COARSE}):
        found, rule = chosen([258], order=2, **options)
        assert found.errors.log_partition == np.inf
        assert found.covariance == 2
        assert rule.sizes == ("needed", options.get("tol", FINE))


def verified(values, means=None, **options):
    """`_verified` where rule after rule gives these values of log Z and means (of |f| <= 2)."""
    tested = integrator("T1", "Re(z1)")
    tested.harmonics.__dict__["ranges"] = np.array([2.0])
    asked = []
    means = means or [0.0] * len(values)

    def evaluate(lam, rule, order):
        asked.append((rule.sizes, order))
        number = len(asked) - 1
        return Cumulants(values[number], np.array([means[number]]), None, ())

    def grown(rule, growth, extra):
        assert (growth, extra) == (1.1, 2)
        return Rule((np.zeros(rule.count + 1),), (), (), ())

    tested.integrator.evaluate, tested._grown = evaluate, grown
    found, rule = tested._verified(np.array([1.0]), Rule((np.zeros(7),), (), (), ()), 2)
    assert [sizes for sizes, _ in asked] == [(7 + k,) for k in range(len(asked))]
    assert {order for _, order in asked} == {2}
    assert rule.sizes == (7 + len(asked) - 1,)
    assert found.log_partition == values[len(asked) - 1]
    return len(asked), found.errors.log_partition - 16 * EPS * 3


@pytest.mark.parametrize("sign", [1, -1])
def test_rules_agree_when_neither_log_z_nor_a_mean_moves(sign):
    """To 1e-13 of 1 + |log Z|, and of the range of f; the last change is the error."""
    z = sign * 9.0
    assert verified([z, z + 0.9e-12 * sign])[0] == 2
    assert verified([z, z + 1.1e-12, z + 1.1e-12]) == (3, pytest.approx(0, abs=1e-16))
    assert verified([z, z], [0.0, 1.9e-12])[0] == 2
    assert verified([z, z, z], [0.0, sign * 2.1e-12, sign * 2.1e-12])[0] == 3
    moved = verified([z, z + 1e-13], [0.0, 1e-12])
    assert moved == (2, pytest.approx(5e-13, rel=1e-6, abs=0))  # half of the range is what 1e-12 is
    assert verified([z, z + 2.0**-41])[1] == pytest.approx(2.0**-41, rel=1e-6, abs=0)


def test_rules_that_keep_moving_are_accepted_to_nine_digits_or_refused():
    z = [9.0, 9.5, 9.2, 9.3]
    tried, error = verified([*z, 9.3 + 9e-9])
    assert tried == 5
    assert error == pytest.approx(9e-9, rel=1e-6)
    with pytest.raises(NotConvergedError, match=r"two rules of 11 nodes and fewer differ by 1\.1e-08"):
        verified([*z, 9.3 + 1.08e-8])
    with pytest.raises(NotConvergedError):
        verified([9.0] * 5, [0.0, 1.0, 0.0, 1.0, 1.0 + 3e-8])
    assert verified([9.0] * 5, [0.0, 1.0, 0.0, 1.0, 1.0 + 1e-8])[0] == 5
    with pytest.raises(NotConvergedError):
        verified([9.0, np.nan, np.nan, np.nan, np.nan])

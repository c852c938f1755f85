"""The groups that have a name: shifts, reflections, permutations, rotations, and their chains."""

from __future__ import annotations

import math
import re

import numpy as np

from manifold.errors import InputError
from manifold.groups.actions import BlockRotation, CircleAction, FiniteAction, GroupAction
from manifold.spaces.homogeneous import SpectralSpace

NAMES = (
    "Z<m> (cyclic shift or rotation), Z<m>xZ<m>.. (torus), D<m> (dihedral), reflect, signs, antipode, swap, "
    "perm, signperm, SO<k>, O<k>, SO<k>xflip, circle:<w1>,<w2>.., hopf, trivial"
)


def named_action(space: SpectralSpace, name: str) -> GroupAction:
    """The action with this name on this space.

    Parameters
    ----------
    space : SpectralSpace
    name : str
        ``Z8`` shifts the first angle of a torus by 2 pi / 8, or rotates the first two coordinates of
        a sphere; ``Z4xZ4`` shifts the first angles one by one; ``D8`` adds x -> -x (torus) or the
        reflection of the second coordinate (sphere), order 16; ``reflect``: x -> -x; ``antipode`` the
        same on spheres; ``signs``: all sign changes; ``swap``: the first two coordinates; ``perm``: all
        permutations; ``signperm``: signed permutations; ``SO2``: a circle shifting the first angle, or
        rotating the first two coordinates; ``SO<k>``, ``O<k>``: rotations of the first k coordinates of
        a sphere, ``SO<k>xflip`` together with -1 on the other coordinates; ``circle:1,2``: see
        `CircleAction`; ``hopf``: all planes of an odd sphere; ``trivial``.

    Returns
    -------
    GroupAction

    Raises
    ------
    InputError
        If the name is unknown, or makes no sense on this space.
    """
    text = name.strip()
    low = text.lower()
    if low in ("trivial", "none"):
        return FiniteAction.from_generators(space, np.eye(space.ambient)[None], name="trivial")
    if re.fullmatch(r"z[0-9]+(xz[0-9]+)*", low):
        return _cyclic(space, [int(m) for m in re.findall(r"[0-9]+", low)], text)
    if match := re.fullmatch(r"d([0-9]+)", low):
        return _dihedral(space, int(match[1]), text)
    if match := re.fullmatch(r"(so|o)([0-9]+)(xflip)?", low):
        if space.kind == "sphere":
            return BlockRotation.on(space, int(match[2]), name=text, flip=bool(match[3]))
        if low == "so2":
            return CircleAction.on(space, (1,), name=text)
    if match := re.fullmatch(r"circle:(-?[0-9]+(,-?[0-9]+)*)", low):
        return CircleAction.on(space, [int(w) for w in match[1].split(",")], name=text)
    if low == "hopf" and space.kind == "sphere" and space.ambient % 2 == 0:
        return CircleAction.on(space, (1,) * (space.ambient // 2), name=text)
    generators = _coordinate_generators(space, low)
    if generators is None:
        raise InputError(f"symmetry: {name!r} is not a group on {space.name}; expected one of {NAMES}")
    return FiniteAction.from_generators(space, np.stack(generators), name=text)


def _coordinate_generators(space: SpectralSpace, name: str) -> list[np.ndarray] | None:
    size = space.ambient
    eye = np.eye(size)
    flip = np.diag([-1.0] + [1.0] * (size - 1))
    # Adjacent swaps generate all permutations.
    swaps = [eye[[*range(i), i + 1, i, *range(i + 2, size)]] for i in range(size - 1)]
    table = {
        "reflect": [-eye],
        "antipode": [-eye] if space.kind == "sphere" else None,
        "signs": [np.diag(1.0 - 2.0 * eye[i]) for i in range(size)],
        "swap": swaps[:1] or None,
        "perm": swaps or None,
        "signperm": [flip, *swaps],
    }
    return table.get(name)


def _turn(space: SpectralSpace, order: int, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    angle = 2 * math.pi / order
    matrix, shift = np.eye(space.ambient), np.zeros(space.ambient)
    if space.kind == "torus":
        shift[axis] = angle
    else:
        matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return matrix, shift


def _cyclic(space: SpectralSpace, orders: list[int], name: str) -> FiniteAction:
    room = space.dim if space.kind == "torus" else 1
    if min(orders) < 1 or len(orders) > room:
        raise InputError(f"symmetry {name}: {space.name} takes at most {room} cyclic factor(s) of order >= 1")
    maps = [_turn(space, order, axis) for axis, order in enumerate(orders)]
    return FiniteAction.from_generators(
        space, np.stack([A for A, _ in maps]), np.stack([b for _, b in maps]), name=name
    )


def _dihedral(space: SpectralSpace, order: int, name: str) -> FiniteAction:
    if order < 1 or (space.kind == "torus" and space.dim > 1):
        raise InputError(f"symmetry {name}: dihedral groups act here on T1 and on spheres, with order >= 1")
    matrix, shift = _turn(space, order)
    mirror = np.diag([1.0, -1.0] + [1.0] * (space.ambient - 2)) if space.ambient > 1 else -np.eye(1)
    return FiniteAction.from_generators(
        space, np.stack([matrix, mirror]), np.stack([shift, 0 * shift]), name=name
    )


def default_chain(name: str) -> list[str]:
    """Names of a chain of subgroups that ends in this group.

    ``Z8`` gives Z1, Z2, Z4, Z8; ``Z4xZ4`` gives Z1xZ1, Z2xZ2, Z4xZ4; ``D8`` gives trivial, Z8, D8;
    ``SO2xflip`` gives trivial, SO2, SO2xflip; every other group: trivial and itself.

    Raises
    ------
    InputError
        If a cyclic factor has order 0.
    """
    low = name.strip().lower()
    if re.fullmatch(r"z[0-9]+(xz[0-9]+)*", low):
        orders = [int(m) for m in re.findall(r"[0-9]+", low)]
        if min(orders) < 1:
            raise InputError(f"symmetry: cyclic orders are at least 1, got {name!r}")
        chain = [orders]
        while max(orders) > 1:
            # Divide by the largest prime last, so that the chain climbs in the smallest steps.
            orders = [m // _largest_prime(m) for m in orders]
            chain.append(orders)
        return ["x".join(f"Z{m}" for m in step) for step in reversed(chain)]
    if match := re.fullmatch(r"d([0-9]+)", low):
        return ["trivial", f"Z{match[1]}", name.strip()]
    if match := re.fullmatch(r"(s?o[0-9]+)xflip", low):
        return ["trivial", match[1].upper(), name.strip()]
    return ["trivial"] if low in ("trivial", "none") else ["trivial", name.strip()]


def _largest_prime(number: int) -> int:
    factor, largest = 2, 1
    while number > 1:
        if number % factor:
            factor += 1
        else:
            number //= factor
            largest = factor
    return largest

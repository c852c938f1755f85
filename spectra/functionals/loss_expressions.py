"""Losses written as formulas of potentials, ``-(J/2)*(rho1**2 + rho2**2)``: read by a grammar, never run."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from manifold.errors import InputError

LONGEST = 2000
HIGHEST_POWER = 64
OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
FUNCTIONS = {name: getattr(torch, name) for name in ("exp", "log", "sqrt", "sin", "cos", "tanh")}
GRAMMAR = (
    "numbers, rho1 .. rho<m>, parameters, + - * / ** (or ^) with a constant power, parentheses, and "
    + ", ".join(FUNCTIONS)
)


def parse_loss(
    text: str, count: int, parameters: Mapping[str, float] | None = None
) -> Callable[[Tensor], Tensor]:
    """Turn a formula into a differentiable function of the potentials.

    Parameters
    ----------
    text : str
        For example ``-(J/2)*(rho1**2 + rho2**2)``.
    count : int
        Number m of potentials.
    parameters : mapping of str to float, optional
        Values of the other names.

    Returns
    -------
    callable
        Maps potentials (m,) to the scalar L(rho), for automatic differentiation.

    Raises
    ------
    InputError
        If the formula does not follow the grammar (which the message repeats) or uses an unknown name.
    """
    if len(text) > LONGEST:
        raise InputError(f"--loss-expr: expected at most {LONGEST} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
        evaluate = _compile(tree, count, dict(parameters or {}))
    except InputError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"--loss-expr: cannot read {text!r}; expected {GRAMMAR}") from error

    def loss(rho: Tensor) -> Tensor:
        return evaluate(rho) + 0 * rho.square().sum()  # also a constant formula has derivatives: zero

    return loss


def _compile(node: ast.AST, count: int, parameters: dict[str, float]) -> Callable[[Tensor], Tensor | float]:
    match node:
        case ast.Constant(value=bool() | complex()):
            pass
        case ast.Constant(value=int() | float() as value) if abs(value) < 1e300:
            return lambda rho: float(value)
        case ast.Name(id=name):
            return _name(name, count, parameters)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=inner):
            value = _compile(inner, count, parameters)
            return value if isinstance(sign, ast.UAdd) else lambda rho: -value(rho)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            base, power = _compile(left, count, parameters), _power(right, parameters)
            return lambda rho: base(rho) ** power
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATIONS:
            combine = OPERATIONS[type(op)]
            first, second = _compile(left, count, parameters), _compile(right, count, parameters)
            return lambda rho: combine(first(rho), second(rho))
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in FUNCTIONS:
            value, function = _compile(inner, count, parameters), FUNCTIONS[name]
            return lambda rho: function(torch.as_tensor(value(rho), dtype=rho.dtype))
    raise InputError(f"--loss-expr: cannot use {ast.unparse(node)!r}; expected {GRAMMAR}")


def _name(name: str, count: int, parameters: dict[str, float]) -> Callable[[Tensor], Tensor | float]:
    if name in parameters:
        value = float(parameters[name])
        return lambda rho: value
    found = re.fullmatch(r"rho([1-9]\d{0,5})", name)
    if found is None:
        raise InputError(f"--loss-expr: {name!r} has no value; give --param {name}=VALUE (or use rho1 ..)")
    index = int(found[1]) - 1
    if index >= count:
        raise InputError(f"--loss-expr: {name} but there are {count} monomials, rho1 .. rho{count}")
    return lambda rho: rho[index]


def _power(node: ast.AST, parameters: dict[str, float]) -> float:
    value = _compile(node, 0, parameters)(torch.zeros(0, dtype=torch.float64))
    value = float(value)
    if not math.isfinite(value) or abs(value) > HIGHEST_POWER:
        raise InputError(f"--loss-expr: expected a power of at most {HIGHEST_POWER}, got {value:g}")
    return int(value) if value == int(value) else value

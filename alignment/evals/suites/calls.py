"""Calls of a calculator in an answer: ``calculator(3 + 4 * 2)``, found and worked out.

Only numbers, ``+ - * / ( )`` and spaces are read; nothing is executed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, DecimalException

MOST_SIGNS = 200
"""Of an expression that is worked out."""

_CALL = re.compile(r"\bcalculator\s*\(", re.I)
_PLAIN = re.compile(r"[0-9+\-*/(). ]+")
_BOTH: dict[type[ast.operator], Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def called(answer: str) -> list[Decimal | None]:
    """The value of every call in an answer, in order; None for one that cannot be worked out."""
    return [value_of(expression) for expression in _expressions(answer)]


def value_of(expression: str) -> Decimal | None:
    """What an expression comes to; None for what is none, or divides by zero."""
    expression = expression.replace("×", "*").replace("÷", "/").replace("−", "-").replace(",", "").strip()
    if not _PLAIN.fullmatch(expression) or len(expression) > MOST_SIGNS or "**" in expression or "//" in expression:
        return None
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, DecimalException, RecursionError, MemoryError):
        return None


def _expressions(answer: str) -> Iterator[str]:
    """What stands between the brackets of each call; nothing for a bracket that stays open."""
    for match in _CALL.finditer(answer):
        depth = 1
        for place in range(match.end(), len(answer)):
            depth += {"(": 1, ")": -1}.get(answer[place], 0)
            if depth == 0:
                yield answer[match.end() : place]
                break


def _value(node: ast.expr) -> Decimal | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Decimal(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        inner = _value(node.operand)
        return None if inner is None else inner if isinstance(node.op, ast.UAdd) else -inner
    if isinstance(node, ast.BinOp) and type(node.op) in _BOTH:
        left, right = _value(node.left), _value(node.right)
        return None if left is None or right is None else _BOTH[type(node.op)](left, right)
    return None

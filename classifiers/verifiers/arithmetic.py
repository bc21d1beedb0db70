"""Sums that stand in the text are worked out again."""

import re
from decimal import Decimal, DivisionByZero, InvalidOperation, localcontext
from itertools import pairwise

from classifiers.api import DraftEvidence

_NUMBER = r"\$?\d[\d,]*(?:\.\d+)?"
_OPERATOR = r"\s*(?:[+*/×÷−-]|\bx\b)\s*"
_SIDE = rf"{_NUMBER}(?:{_OPERATOR}{_NUMBER})*"
_EQUATION = re.compile(rf"(?<![\d.,%+*/×÷−=-])(?<![+*/×÷−=-]\s)({_SIDE}(?:\s*=\s*{_SIDE})+)(?![\d%])")
_PRODUCT = {"*", "x", "×", "/", "÷"}


def check_arithmetic(evidence: DraftEvidence) -> str:
    """The first equation `a op b = c` (op one of + - x * × / ÷) that doesn't hold, "" when all do.

    Products bind before sums. A result counts as right when it equals the value rounded to its own decimals. In a run-on
    `2 x 3 = 6 + 4 = 10` each `=` may look at the number right behind it. Percentages, units and words end an equation.
    """
    for match in _EQUATION.finditer(evidence.text):
        sides = re.split(r"\s*=\s*", match[1].rstrip(","))
        if all(len(_numbers(side)) == 1 for side in sides):
            continue  # "x = 5" style: nothing to work out
        for left, right in pairwise(sides):
            value = _value(left)
            if value is None:
                return f"expected a division by something else than 0, got {left}"
            shown = (_value(right), _value(_numbers(right)[0]))
            if not any(number is not None and _equal(value, number) for number in shown):
                return f"expected {left} = {value.normalize():f}, got {right}"
    return ""


def _numbers(side: str) -> list[str]:
    return re.findall(_NUMBER, side)


def _value(side: str) -> Decimal | None:
    """The value of a side, None when it divides by zero."""
    numbers = [Decimal(number.strip("$").rstrip(",").replace(",", "")) for number in _numbers(side)]
    operators = re.findall(r"[+*/×÷−-]|\bx\b", re.sub(_NUMBER, " ", side))
    with localcontext(prec=28) as context:
        context.traps[DivisionByZero] = context.traps[InvalidOperation] = False
        terms, sign = [numbers[0]], [1]
        for operator, number in zip(operators, numbers[1:], strict=True):
            if operator in _PRODUCT:
                terms[-1] = terms[-1] / number if operator in "/÷" else terms[-1] * number
            else:
                terms.append(number)
                sign.append(1 if operator == "+" else -1)
        total = sum((term * factor for term, factor in zip(terms, sign, strict=True)), Decimal(0))
    return total if total.is_finite() else None


def _equal(value: Decimal, shown: Decimal) -> bool:
    decimals = max(0, -int(shown.as_tuple().exponent))
    return abs(value - shown) <= Decimal(5).scaleb(-decimals - 1) if decimals or value % 1 else value == shown

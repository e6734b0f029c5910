"""Evaluate arithmetic expressions exactly, with bounded cost; the tool `calculator` uses it."""

import ast
import math
import operator
import re
import warnings
from decimal import Context, Decimal, Inexact
from fractions import Fraction

LENGTH = 256  # characters of an expression
BITS = 4096  # bits of a numerator or denominator
DIGITS = 15  # digits of a result without a finite decimal form, such as 1/3
ENDS = 60  # results with more decimal places are rounded to DIGITS
EXACT = Context(prec=int(BITS * math.log10(2)) + 1 + ENDS, traps=[Inexact])

WRITTEN = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "\ue000"})
CHARACTERS = re.compile(r"[0-9.eE+\-*/%()\s]*")
NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> str:
    """Return the value of `expression`: numbers, + - * / // % **, parentheses; also × ÷ ^ and commas between thousands.

    The arithmetic is exact (fractions). A finite decimal is written in full, so 0.1 + 0.2 is 0.3; others have 15 digits.

    >>> calculate("2 ** 0.5")
    Traceback (most recent call last):
    ValueError: an exponent must be a whole number
    >>> calculate("(1,000 + 1/4) × 3")
    '3000.75'

    Raises: ValueError with the reason, also for numbers above 4,096 bits. The size of a power, as in 9 ** 9 ** 9, is checked
    before it is computed.
    """
    if len(expression) > LENGTH:
        raise ValueError(f"the expression is longer than {LENGTH} characters")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression.translate(WRITTEN)).replace("\ue000", "**").strip()
    if not CHARACTERS.fullmatch(text):
        raise ValueError("only numbers, + - * / // % ** and parentheses can be worked out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval")
        return _written(_value(tree.body, text))
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{expression!r} is no expression that can be worked out") from None


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant) and (number := NUMBER.fullmatch(ast.get_source_segment(text, node))):
        return _bounded(Fraction(number[0]))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, text)
        return value if isinstance(node.op, ast.UAdd) else -value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in BINARY:
            if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult) and not right:
                raise ValueError("division by zero")
            return _bounded(Fraction(BINARY[type(node.op)](left, right)))
    raise ValueError("only numbers, + - * / // % ** and parentheses can be worked out")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be a whole number")
    if not base and exponent < 0:
        raise ValueError("division by zero")
    if abs(base.numerator) > 1 or base.denominator > 1:
        _check(abs(exponent.numerator) * (max(abs(base.numerator), base.denominator).bit_length() - 1))
    elif base:
        return base if exponent.numerator % 2 else Fraction(1)
    return _bounded(Fraction(base**exponent.numerator))


def _bounded(value: Fraction) -> Fraction:
    _check(max(abs(value.numerator), value.denominator).bit_length())
    return value


def _check(bits: int) -> None:
    if bits > BITS:
        raise ValueError(f"a number has more than {int(BITS * math.log10(2))} digits")


def _written(value: Fraction) -> str:
    numerator, denominator = Decimal(value.numerator), Decimal(value.denominator)
    try:
        exact = EXACT.divide(numerator, denominator)
        if exact.as_tuple().exponent >= -ENDS:
            return format(exact, "f")
    except Inexact:
        pass
    return str(Context(prec=DIGITS).divide(numerator, denominator))

"""MACs of an einsum, taken as products of two operands from left to right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from st3fx.flops.counted import Product
from st3fx.flops.operand import Operand
from st3fx.flops.products import contraction


def einsum(equation: str, operands: Sequence[Operand]) -> list[Product]:
    """The products of an einsum.

    An index that only one operand has and the result has not is added up first. Then each product
    takes one MAC for every combination of the indices of its two operands.

    Args:
        equation: As NumPy has it, ``bij,bjk->bik``, with or without ``...`` and the arrow.
        operands: In the order of the equation.
    """
    terms, result = _terms(equation, [len(operand.shape) for operand in operands])
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for index, size in zip(term, operand.shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    products = []
    left, left_operand = terms[0], operands[0]
    for position in range(1, len(terms)):
        right = terms[position]
        later = set(result).union(*terms[position + 1 :])
        shared = set(left) & set(right)
        indices = (set(left) | set(right)) & (later | shared)
        dense = math.prod(sizes[index] for index in indices)
        pair = [o for o, t in ((left_operand, left), (operands[position], right))
                if set(t) <= indices and _whole(t, o, sizes)]  # fmt: skip
        products.append(contraction("einsum", dense, *pair))
        left = "".join(sorted(indices & later))
        left_operand = Operand(tuple(sizes[index] for index in left))
    return products


def _whole(term: str, operand: Operand, sizes: dict[str, int]) -> bool:
    """Whether every scalar of an operand is used equally often: no diagonal is taken of it."""
    sized = all(sizes[index] == size for index, size in zip(term, operand.shape, strict=True))
    return sized and len(set(term)) == len(term)


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """One letter per dimension of each operand, and those of the result."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    rest = [rank - len(p.replace("...", "")) for p, rank in zip(parts, ranks, strict=True)]
    # Numbers stand for what the dots leave out, aligned at the end.
    dots = "".join(chr(0x2460 + i) for i in range(max(rest)))
    terms = [
        part.replace("...", dots[len(dots) - count :] if count else "")
        for part, count in zip(parts, rest, strict=True)
    ]
    if not arrow:
        letters = "".join(terms)
        once = sorted({c for c in letters if c not in dots and letters.count(c) == 1})
        return terms, dots + "".join(once)
    return terms, result.replace("...", dots)

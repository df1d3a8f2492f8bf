"""MACs of an einsum, taken as products of two operands in turn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from st3fx.flops.elementwise import PER_INPUT
from st3fx.flops.operand import Channels, Elementwise, Operand, Product
from st3fx.flops.products import channels, contraction

Pair = tuple[int, int]


@dataclass(frozen=True)
class _Term:
    """An operand with a letter for each of its dimensions, no letter twice."""

    letters: str
    operand: Operand


def einsum_products(
    equation: str, operands: Sequence[Operand], path: Sequence[Pair] = ()
) -> list[Product | Elementwise]:
    """What an einsum costs.

    An index that only one operand has and the result has not is added up first. Then each product
    takes one MAC for every combination of the indices of its two operands, whether it adds some of
    them up or is elementwise. Of a diagonal only its scalars count.

    Args:
        equation: As NumPy has it, ``bij,bjk->bik``, with or without ``...`` and the arrow.
        operands: In the order of the equation.
        path: Which two are multiplied next, by their places in the list of what is left, to whose
            end the result goes; empty: from left to right.
    """
    names, result = _terms(equation, [len(operand.shape) for operand in operands])
    sizes: dict[str, int] = {}
    for name, operand in zip(names, operands, strict=True):
        for index, size in zip(name, operand.shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    left = [_diagonal(name, operand) for name, operand in zip(names, operands, strict=True)]
    counted: list[Product | Elementwise] = []
    steps = iter(path)
    first = True
    while len(left) > 1 or first:
        # What comes out of a product goes to the end; from left to right it is taken up again.
        default = (0, 1) if first else (len(left) - 1, 0)
        places = next(steps, default) if len(left) > 1 else (0,)
        first = False
        chosen = [left[place] for place in places]
        left = [term for place, term in enumerate(left) if place not in places]
        later = set(result).union(*(term.letters for term in left))
        made, more = _multiplied(chosen, later, sizes)
        counted += more
        left.append(made)
    return counted


def _multiplied(
    chosen: Sequence[_Term], later: set[str], sizes: dict[str, int]
) -> tuple[_Term, list[Product | Elementwise]]:
    """The product of one or two operands, of which ``later`` indices stay, and what it costs."""
    counted: list[Product | Elementwise] = []
    shared = set.intersection(*(set(term.letters) for term in chosen)) if len(chosen) > 1 else set()
    terms = [_summed(term, later | shared) for term in chosen]
    for before, after in zip(chosen, terms, strict=True):
        if after is not before and before.operand.floating:
            counted.append(Elementwise("sum", PER_INPUT["sum"] * before.operand.numel))
    indices = set().union(*(term.letters for term in terms))
    if len(terms) > 1:
        dense = math.prod(sizes[index] for index in indices)
        product = contraction("einsum", dense, *(term.operand for term in terms))
        counted.append(replace(product, channels=_channels(product, terms, later)))
    kept = "".join(sorted(indices & later))
    shape = tuple(sizes[index] for index in kept)
    return _Term(kept, replace(terms[0].operand, shape=shape, constant=None)), counted


def _diagonal(name: str, operand: Operand) -> _Term:
    """An operand whose letters that come twice are taken once, along the diagonal."""
    letters = "".join(dict.fromkeys(name))
    if len(letters) == len(name):
        return _Term(letters, operand)
    sizes = dict(zip(name, operand.shape, strict=True))
    shape = tuple(sizes[letter] for letter in letters)
    constant = operand.constant
    if constant is not None:
        places = {letter: place for place, letter in enumerate(letters)}
        mask = constant.mask
        grid = torch.meshgrid([torch.arange(size) for size in shape], indexing="ij")
        constant = constant.part(
            ("diagonal", name), mask.cpu()[tuple(grid[places[letter]] for letter in name)]
        )
    return _Term(letters, replace(operand, shape=shape, constant=constant))


def _summed(term: _Term, kept: set[str]) -> _Term:
    """An operand without the indices that are added up before it is multiplied."""
    gone = tuple(place for place, letter in enumerate(term.letters) if letter not in kept)
    if not gone:
        return term
    letters = "".join(letter for letter in term.letters if letter in kept)
    shape = tuple(s for place, s in enumerate(term.operand.shape) if place not in gone)
    constant = term.operand.constant
    if constant is not None:
        # A sum of numbers that are not all zero is taken not to be zero.
        constant = constant.part(("sum", gone), constant.mask.sum(gone) > 0)
    return _Term(letters, replace(term.operand, shape=shape, constant=constant))


def _channels(product: Product, terms: Sequence[_Term], later: set[str]) -> Channels | None:
    """Channels of the weight: inputs are added up, outputs are its own, groups are in both."""
    constant = product.constant
    weight = next((t for t in terms if t.operand.constant is constant), None)
    if constant is None or weight is None:
        return None
    other = set().union(*(term.letters for term in terms if term is not weight))
    parts = [
        [i for i, c in enumerate(weight.letters) if c in later and c in other],
        [i for i, c in enumerate(weight.letters) if c not in other],
        [i for i, c in enumerate(weight.letters) if c not in later],
    ]
    groups, outputs, inputs = (math.prod(weight.operand.shape[i] for i in p) for p in parts)
    order = [i for part in parts for i in part]
    moved = constant.part(("order", *order), constant.mask.permute(order))
    return channels(moved, groups, outputs, inputs, outputs_first=True)


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


def contracts(equation: str, ranks: Sequence[int]) -> bool:
    """Whether operands are multiplied and added up, as layers do; else it computes elementwise."""
    terms, result = _terms(equation, ranks)
    letters = [letter for term in terms for letter in set(term)]
    return any(letters.count(letter) > 1 and letter not in result for letter in letters)


def pairs(path: Sequence[int]) -> Iterator[Pair]:
    """Pairs of a path that is one flat list."""
    yield from zip(path[::2], path[1::2], strict=True)

"""Which channels have to be computed, and why.

The least set that holds what is pinned, and with a channel all that it is computed from. Then what
the form of tensors asks for, which can bring more to life: no dimension is left empty, groups of a
convolution are equal in size, a constant that meets a border has a carrier, and convolutions keep a
number of channels that is fast.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from st3fx.passes.channels.analyze import Analysis
from st3fx.passes.channels.fact import Fact, Ids, Kept, Mask
from st3fx.passes.channels.product import Product

READ = "it meets a channel that is not constant"
BORDER = "its constant is not zero, and meets a border"
CARRIER = "it stands for the constants that meet a border"
GROUPS = "groups of a convolution are equal in size"
LAST = "it is the last of its tensor"
ALIGNED = "it fills up a multiple of four, which fast convolutions ask for"

ALIGNMENT = 4
"""Depthwise convolutions of other numbers of channels take ONNX Runtime 1.4 to 1.6 times as long
(97 and 117 channels against 100 and 120, at 28×28 with AVX-512)."""
WIDE = 16
"""Of fewer channels, three more would be too large a share."""

SMALL = 1e-3
"""A carrier has a constant of at least this share of the largest: its filters stay in range."""


class Liveness:
    """The channels that live.

    Attributes:
        classes: For each channel, the one that stands for all that it is one with.
        alive: By such channel.
        reasons: Such channel -> why it lives, the first reason that was found.
    """

    def __init__(self, analysis: Analysis) -> None:
        """Find them."""
        self.analysis = analysis
        self.classes = analysis.coupling.classes()
        self.alive: Mask = np.zeros(len(self.classes), dtype=bool)
        self.reasons: dict[int, str] = {}
        for ids, reason in analysis.coupling.pins():
            self._enliven(ids, reason)
        self._seen: dict[Product, int] = {}
        while True:
            self._spread()
            if not (self._balance() or self._carry() or self._fill() or self._align()):
                break

    @property
    def kept(self) -> Kept:
        """The result."""
        return Kept(self.alive[self.classes])

    def lives(self, ids: Ids) -> Mask:
        """Which of these channels live."""
        mask: Mask = self.alive[self.classes[ids]]
        return mask

    def why(self, channel: int) -> str:
        """Why a channel lives."""
        return self.reasons[int(self.classes[channel])]

    def _enliven(self, ids: Ids, reason: str) -> bool:
        """Whether one of these was dead."""
        found = np.unique(self.classes[ids.reshape(-1)])
        new = found[~self.alive[found]]
        self.alive[new] = True
        self.reasons.update(dict.fromkeys(new.tolist(), reason))
        return bool(new.size)

    def _spread(self) -> None:
        """From outputs to what they are computed from, to the end."""
        changed = True
        while changed:
            changed = False
            for product in reversed(self.analysis.coupling.products):
                outputs = self.lives(product.outputs)
                count = int(np.count_nonzero(outputs))
                if count == self._seen.get(product):
                    continue
                self._seen[product] = count
                read = (product.reads & outputs[:, :, None]).any(1)
                border = ~np.isnan(product.constants) & (product.constants != 0)
                needed = read & ~product.absorbed
                changed |= self._enliven(product.inputs[needed & ~border], READ)
                changed |= self._enliven(product.inputs[needed & border], BORDER)

    def _balance(self) -> bool:
        """As many channels in each group as in the largest, unless a whole group is dead."""
        changed = False
        for product in self.analysis.coupling.products:
            if product.layout.groups == 1:
                continue
            inputs, outputs = self.lives(product.inputs), self.lives(product.outputs)
            there = inputs.any(1) | outputs.any(1)
            for ids, living in ((product.inputs, inputs), (product.outputs, outputs)):
                wanted = max(1, int(living.sum(1).max(initial=0)))
                for group in np.flatnonzero(there):
                    spare = np.flatnonzero(~living[group])[: wanted - int(living[group].sum())]
                    changed |= self._enliven(ids[group, spare], GROUPS)
        return changed

    def _carry(self) -> bool:
        """A living constant wherever others meet a border."""
        changed = False
        for product in self.analysis.coupling.products:
            if not product.merges:
                continue
            for group, dead in enumerate(self.merged(product)):
                if (
                    dead.any()
                    and carrier(product, group, self.lives(product.inputs[group])) is None
                ):
                    best = np.nanargmax(np.abs(product.constants[group]))
                    changed |= self._enliven(product.inputs[group, best : best + 1], CARRIER)
        return changed

    def merged(self, product: Product) -> Mask:
        """(groups, inputs): dead inputs with a constant that living outputs are computed from."""
        read = (product.reads & self.lives(product.outputs)[:, :, None]).any(1)
        constant = np.nan_to_num(product.constants) != 0
        mask: Mask = read & constant & ~self.lives(product.inputs)
        return mask

    def _fill(self) -> bool:
        """No dimension of a living tensor is empty, but for parts of a concatenation."""
        changed = False
        for node, found in self.analysis.facts.items():
            parts = found if isinstance(found, tuple) else (found,)
            facts = [part for part in parts if isinstance(part, Fact)]
            if not any(self._is_gone(fact) for fact in facts) or not self._is_used(node, facts):
                continue
            for fact in facts:
                for dim, ids in enumerate(fact.axes):
                    if ids is not None and not self.lives(ids).any():
                        place = _cheapest(fact, dim)
                        changed |= self._enliven(ids[place : place + 1], LAST)
        return changed

    def _align(self) -> bool:
        """Convolutions keep a multiple of channels that fast kernels ask for, where they had it."""
        convolutions = [p for p in self.analysis.coupling.products if p.tensor.dim() > 2]
        # What a depthwise one reads brings its outputs along: not both at a time.
        whole = [p for p in convolutions if p.layout.groups == 1]
        grouped = [p for p in convolutions if p.layout.groups > 1]
        for products in (whole, grouped):
            changed = [self._fill_up(product) for product in products]
            if any(changed):
                return True
        return False

    def _fill_up(self, product: Product) -> bool:
        outputs = product.outputs.reshape(-1)
        living = self.lives(outputs)
        missing = -int(living.sum()) % ALIGNMENT
        had_it = outputs.size >= WIDE and outputs.size % ALIGNMENT == 0
        if not (had_it and missing and living.any()):
            return False
        # First those that nothing is computed for.
        dead = np.flatnonzero(~living)
        reads = product.reads.sum(-1).reshape(-1)[dead]
        return self._enliven(outputs[dead[np.argsort(reads, kind="stable")[:missing]]], ALIGNED)

    def _is_gone(self, fact: Fact) -> bool:
        return any(ids is not None and not self.lives(ids).any() for ids in fact.axes)

    def _is_used(self, node: fx.Node, facts: list[Fact]) -> bool:
        """Whether something that lives needs a tensor although a dimension of it is empty."""
        if len(facts) > 1 and not all(self._is_gone(fact) for fact in facts):
            return True
        if node.op == "get_attr":
            return False
        for user in node.users:
            found = self.analysis.facts.get(user)
            name = getattr(user.target, "overloadpacket", None)
            if isinstance(found, Fact) and str(name) != "aten.cat" and not self._is_gone(found):
                return True
        return False


def _cheapest(fact: Fact, dim: int) -> int:
    """An index to keep when all could go: one that is constant, as little is computed for it."""
    known = fact.constant.known if fact.constant and fact.constant.axis == dim else None
    return int(known.int().argmax()) if known is not None else 0


def carrier(product: Product, group: int, living: Mask) -> int | None:
    """The living constant input that takes the filters of others; ``None`` if there is none."""
    size = np.where(living, np.nan_to_num(np.abs(product.constants[group])), 0)
    largest = np.nanmax(np.abs(product.constants[group]), initial=0)
    place = int(size.argmax())
    return place if size[place] and size[place] >= SMALL * largest else None

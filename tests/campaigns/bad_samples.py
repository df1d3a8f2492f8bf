"""Data sets with samples that raise, are of another kind or NaN: stopped by name, or left out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from st3fx.data.base import EpochSampler
from st3fx.data.guarded import guarded, heard
from st3fx.data.images import SeededDataset
from st3fx.errors import DataError


class _Damaged(Dataset[Any]):
    def __init__(self, size: int, bad: dict[int, str], *, nested: bool) -> None:
        self.size, self.bad, self.nested = size, bad, nested
        self.samples = [(f"{index}.png", 0) for index in range(size)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        value, how = torch.full((2, 3), float(index)), self.bad.get(index)
        if how == "raises":
            raise random.Random(index).choice([OSError, ValueError, KeyError, RuntimeError])(
                "no\nt"
            )
        value = {"shape": value[:1], "nan": value / 0 - value / 0, "type": value.double()}.get(
            str(how), value
        )
        return ({"x": value}, index) if self.nested else (value, index)


_OTHER = ("shape", "type")
"""What is bad only beside others."""


def case(seed: int, folder: Path) -> str | None:
    """Hold if a stop names the first one, and what is left out is what is bad, twice the same."""
    dice = random.Random(seed)
    size, batch = dice.randint(8, 60), dice.randint(4, 8)
    count = dice.randint(1, max(1, size // 8))
    bad = {
        place: dice.choice(["raises", "raises", "shape", "nan", "type"])
        for place in dice.sample(range(size), count)
    }
    inner = _Damaged(size, bad, nested=dice.random() < 0.5)
    train, dataset = dice.random() < 0.5, SeededDataset(inner, seed)
    sampler = EpochSampler(size, seed)
    sampler.epoch = dice.randint(0, 5)
    order = [number % size for number in sampler]

    def loader(*, skip: bool) -> Any:
        return guarded(DataLoader(dataset, batch, sampler=sampler), skip=skip, train=train)

    groups = [order[at : at + batch] for at in range(0, size, batch)]
    # What is alone in its batch has nothing that it does not fit: images may be of any size there.
    fits = {group[0] for group in groups if len(group) == 1 and bad.get(group[0]) in _OTHER}
    try:
        for told in loader(skip=False):
            heard(told, "data", skip=False)
        if set(bad) - fits:
            return "nothing was noticed"
    except DataError as error:
        first = next(group for group in groups if any(place in bad for place in group))
        if not any(f"sample {place} ({place}.png)" in str(error) for place in first):
            return f"not by name: {error}"
        if "\n" in str(error):
            return "more than one line"
    passes = [[heard(told, "data", skip=True) for told in loader(skip=True)] for _ in range(2)]
    seen = [[told.batch[1].tolist() for told in one if told.batch] for one in passes]
    if seen[0] != seen[1]:
        return "another pass left out others"
    flat = [place for group in seen[0] for place in group]
    left_out = {one.index for told in passes[0] for one in told.bad}
    alone = {group[0] for group in seen[0] if len(group) == 1}  # nothing to compare it with
    # Most of what a batch holds is what it should be.
    tied = {p for group in groups for p in group if 2 * sum(q in bad for q in group) > len(group)}
    if left_out - tied - alone != set(bad) - tied - alone:
        return f"{sorted(left_out)} were left out of {sorted(bad)}"
    if train and len(flat) != size:
        return f"{len(flat)} samples of {size} in an epoch"
    return None

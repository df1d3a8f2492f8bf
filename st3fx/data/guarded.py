"""Loaders whose bad samples are named, and left out if one likes.

A sample is bad when its data set raises (a damaged file), when it does not fit those beside it (of
another shape or type), or has values that are not numbers. What a loader of :func:`guarded` gives
is :class:`Told`: the batch, and what was bad in it; :func:`heard` takes that apart, and raises one
line with the file, the index and the reason, or hands it on to be counted.

Where bad samples are left out, training takes the next one of the same epoch that is good, so that
batches stay whole in every process; test data has as many samples less. Both follow from the data
alone, whoever reads it, and a resumed run does the same.

Data sets that are held in memory are not looked at: theirs are good.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from st3fx.data.images import SeededDataset
from st3fx.data.in_memory import TensorImages
from st3fx.errors import DataError, St3fxError, describe


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used.

    Attributes:
        index: In its data set.
        file: What it is read from; empty where that is not known.
        reason: What is wrong with it, on one line.
    """

    index: int
    file: str
    reason: str

    @property
    def text(self) -> str:
        """``sample 17 (FILE): REASON``."""
        return f"sample {self.index}{f' ({self.file})' if self.file else ''}: {self.reason}"


class Told(NamedTuple):
    """A batch and what was bad in it; no batch if all was."""

    batch: Any
    bad: tuple[Bad, ...]


class _Failed(NamedTuple):
    """Stands for a sample on its way from the data set to the batch."""

    bad: Bad


class _Fetched(NamedTuple):
    """What the data set gave for a batch.

    Attributes:
        numbers: What the sampler asked for.
        samples: One for each, or one that is a batch already.
        whole: Whether it is that.
    """

    numbers: list[Any]
    samples: list[Any]
    whole: bool


MOST = 1000
"""Samples in a row that may be bad where others stand in for them."""


ASKED = 15
"""Samples after a batch that say which kind is usual, where in it two are as many."""


def guarded(loader: DataLoader[Any], *, skip: bool, train: bool) -> DataLoader[Any]:
    """The loader, with batches as :class:`Told`; as it is where its samples cannot be bad.

    Args:
        loader: Of a data set with an index. One that is iterated ends with its first error.
        skip: Whether bad samples are left out.
        train: Whether others stand in for them then.
    """
    dataset: Any = loader.dataset
    if isinstance(dataset, TensorImages | IterableDataset):
        return loader
    own = _GuardedDataset(dataset)
    found = copy.copy(loader)
    # Of a loader that was made, these are not to be set otherwise.
    collate = _Collate(own, loader.collate_fn, skip=skip, train=train)
    found.__dict__.update(dataset=own, collate_fn=collate)
    return found


def heard(told: Any, name: str, *, skip: bool) -> Told:
    """What a loader of :func:`guarded` gave, or any other.

    Raises:
        DataError: When something is bad and nothing is to be left out, or cannot be.
    """
    if not isinstance(told, Told):
        return Told(told, ())
    if told.bad and (told.bad[0].index < 0 or not skip):
        text = told.bad[0].text if told.bad[0].index >= 0 else told.bad[0].reason
        raise DataError(
            f"{name}: {text}; mend it or take it out, or leave single bad samples out by "
            "--on-bad-sample skip"
        )
    return told


def following(iterator: Iterator[Any], name: str, number: int) -> Any:
    """The next batch of a loader; ``None`` at its end.

    Args:
        iterator: Of a loader.
        name: Of the data.
        number: Of the batch.

    Raises:
        DataError: On one line, when a process that loads data has died, or the loader fails.
    """
    try:
        return next(iterator, None)
    except (St3fxError, MemoryError):
        raise
    except Exception as error:  # whatever a user's loader raises
        text = str(error)
        if "DataLoader worker" in text and ("killed" in text or "exited" in text):
            raise DataError(
                f"{name}: a process that loads data has died ({describe(error)}), most likely for "
                "want of memory: give fewer --workers or a smaller --batch-size, or free memory "
                "(also in /dev/shm)"
            ) from error
        reason = describe(error)
        if "Traceback" in text:  # from a process that loads data: its last line says it
            reason = text.strip().splitlines()[-1].strip()[:300]
        raise DataError(f"{name}: batch {number} cannot be loaded: {reason}") from error


class _GuardedDataset(Dataset[Any]):
    """Another data set, whose exceptions are values, and which gives whole batches."""

    def __init__(self, dataset: Any) -> None:
        self.inner = dataset

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __getitem__(self, number: Any) -> _Fetched:
        return _Fetched([number], [self.one(number)], whole=True)

    def __getitems__(self, numbers: Sequence[Any]) -> _Fetched:
        """A batch at once where the data set has that; one by one where it fails."""
        if hasattr(self.inner, "__getitems__"):
            try:
                found = self.inner.__getitems__(numbers)
            except Exception:  # noqa: BLE001 (which of them is found out one by one)
                found = [self.one(number) for number in numbers]
            if not isinstance(found, list) or len(found) != len(numbers):
                return _Fetched(list(numbers), [found], whole=True)
            return _Fetched(list(numbers), found, whole=False)
        return _Fetched(list(numbers), [self.one(number) for number in numbers], whole=False)

    def one(self, number: Any) -> Any:
        """A sample, or the stand-in for it."""
        try:
            return self.inner[number]
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a user's data set raises)
            return self.failed(number, describe(error), getattr(error, "filename", None))

    def failed(self, number: Any, reason: str, file: Any = None) -> _Failed:
        """The stand-in for a sample."""
        index = self.index(number)
        line = " ".join(reason.split())[:300]
        return _Failed(Bad(index, str(file or _file(self.inner, index)), line))

    def index(self, number: Any) -> int:
        """The index of a sample in its set; see :mod:`st3fx.data.base`."""
        if isinstance(self.inner, SeededDataset):
            return int(number) % len(self.inner)
        return int(number) if isinstance(number, int) else 0

    def substitute(self, number: Any) -> tuple[Any, Any] | None:
        """Number and content of the next good sample of the same epoch."""
        return next(self.following(number), None)

    def following(self, number: Any) -> Iterator[tuple[Any, Any]]:
        """Numbers and contents of good samples after one, of the same epoch."""
        if not isinstance(number, int):
            return
        size, index = len(self.inner), self.index(number)
        for step in range(1, min(size, MOST)):
            other = number - index + (index + step) % size
            sample = self.one(other)
            if not isinstance(sample, _Failed):
                yield other, sample


def _file(dataset: Any, index: int) -> str:
    """The file of a sample, where a data set has a list of them as torchvision's have."""
    while isinstance(dataset, SeededDataset | Subset):
        if isinstance(dataset, Subset):
            index = int(dataset.indices[index])
        dataset = dataset.inner if isinstance(dataset, SeededDataset) else dataset.dataset
    if callable(where := getattr(dataset, "where", None)) and 0 <= index < len(dataset):
        return str(where(index))
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not 0 <= index < len(samples):
        return ""
    sample = samples[index]
    first = sample[0] if isinstance(sample, tuple | list) and sample else sample
    return str(first) if isinstance(first, str | Path) else ""


class _Collate:
    """Another collate function, over the samples that are good."""

    def __init__(
        self, dataset: _GuardedDataset, inner: Callable[[Any], Any], *, skip: bool, train: bool
    ) -> None:
        self._dataset, self._inner = dataset, inner
        self._skip, self._train = skip, train

    def __call__(self, fetched: _Fetched) -> Told:
        numbers, items = list(fetched.numbers), list(fetched.samples)
        bad: list[Bad] = []
        while True:
            failed = [i for i, item in enumerate(items) if isinstance(item, _Failed)]
            bad += [items[i].bad for i in failed if items[i].bad not in bad]
            if failed and (fetched.whole or not self._skip):
                return Told(None, tuple(bad))
            for place in reversed(failed):
                other = self._dataset.substitute(numbers[place]) if self._train else None
                if other is not None:
                    numbers[place], items[place] = other
                elif self._train:
                    reason = f"no good sample among {MOST} after it: {bad[0].text}"
                    return Told(None, (Bad(-1, "", reason), *bad))
                else:
                    del numbers[place], items[place]
            if not items:
                return Told(None, tuple(bad))
            batch, reason = self._joined(items[0] if fetched.whole else items)
            # Of another type alone a sample changes that of the batch, without an error.
            mixed = not fetched.whole and any(_types(i) != _types(items[0]) for i in items)
            if not reason and not (mixed and self._name(numbers, items, "", whole=False)):
                return Told(batch, tuple(bad))
            if reason and not self._name(numbers, items, reason, whole=fetched.whole):
                return Told(None, (Bad(-1, "", f"no batch can be made: {reason}"), *bad))
            if len(bad) > MOST:
                return Told(None, (Bad(-1, "", f"{len(bad)} bad samples: {bad[0].text}"), *bad))

    def _joined(self, items: Any) -> tuple[Any, str]:
        """The batch, or why there is none."""
        try:
            batch = self._inner(items)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a user's function raises)
            return None, describe(error)
        return (None, "it has NaN values") if _has_nan(batch) else (batch, "")

    def _name(self, numbers: list[Any], items: list[Any], reason: str, *, whole: bool) -> bool:
        """Put a stand-in for each sample that keeps the others from being a batch; if there is."""
        if whole:
            items[0] = self._dataset.failed(numbers[0], reason)
            return True
        kinds = [_kind(item) for item in items]
        usual, found = self._usual(numbers, kinds), False
        for place, (number, kind) in enumerate(zip(numbers, kinds, strict=True)):
            why = ""
            if kind != usual:
                why = f"it is ({kind}) where others of its batch are ({usual})"
            elif _has_nan(items[place]):
                why = "it has NaN values"
            if why:
                items[place], found = self._dataset.failed(number, why), True
        return found

    def _usual(self, numbers: list[Any], kinds: list[str]) -> str:
        """The kind that most samples have; where two have as many, the next samples decide.

        They are asked for some together: the very next one may be bad itself.
        """
        votes = Counter(kinds)
        if not _is_tied(votes):
            return votes.most_common(1)[0][0]
        for count, (_, sample) in enumerate(self._dataset.following(numbers[-1])):
            if count >= ASKED and not _is_tied(votes):
                break
            if (kind := _kind(sample)) in votes:
                votes[kind] += 1
        return votes.most_common(1)[0][0]


def _is_tied(votes: Counter[str]) -> bool:
    """Whether no kind has more votes than each other."""
    first = votes.most_common(2)
    return len(first) > 1 and first[0][1] == first[1][1]


def _kind(sample: Any) -> str:
    """Shapes and types, for messages and to compare: ``3x28x28 float32, int``."""
    leaves = []
    for leaf in tree_leaves(sample):
        shape = getattr(leaf, "shape", None)
        if shape is None:
            leaves.append(type(leaf).__name__)
        else:
            dtype = str(getattr(leaf, "dtype", "")).removeprefix("torch.")
            leaves.append(f"{'x'.join(map(str, shape)) or 'one'} {dtype}".strip())
    return ", ".join(leaves)


def _types(sample: Any) -> list[Any]:
    """What its values are of; quick for the usual pair, as it is asked of every sample."""
    parts = sample if type(sample) in (tuple, list) else (sample,)
    if any(isinstance(part, dict | list | tuple) for part in parts):
        parts = tree_leaves(sample)
    return [getattr(part, "dtype", type(part)) for part in parts]


def _has_nan(value: Any) -> bool:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found = leaf.is_floating_point() and bool(leaf.isnan().any())
        else:
            own = np.asarray(leaf) if isinstance(leaf, np.ndarray | np.floating | float) else None
            found = own is not None and own.dtype.kind == "f" and bool(np.isnan(own).any())
        if found:
            return True
    return False

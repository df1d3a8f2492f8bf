"""Passes over the training data that can begin in the middle.

A pass draws from generators of its own, whose states are plain tensors and numbers. So the order of
batches and what is done to them depend on seed and epoch alone, whatever dropout draws meanwhile,
and a pass can be replayed.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import send_to_device

from st3fx.data.base import Data, EpochSampler
from st3fx.data.guarded import Bad, following, guarded, heard
from st3fx.errors import DataError, TrainError
from st3fx.modules.state import preserved_rng, seed_everything


def rng_state() -> dict[str, Any]:
    """All generators' states; only tensors, numbers, lists and dicts, to be stored anywhere."""
    version, numbers, gauss = random.getstate()
    of_numpy: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = of_numpy
    return {
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Set all generators to what :func:`rng_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    # Another number of devices than then: each that was there gets its own state.
    for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(value, device)


class Stream:
    """A second set of the CPU's generators, to stand in for the global ones for a while."""

    def __init__(self, *seeds: int) -> None:
        """Start where these seeds lead to, always the same for the same ones."""
        with preserved_rng():
            seed_everything(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
            self._states = _states()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within, the global generators are this stream's; its draws go on with the next use."""
        outer = _states()
        _set(self._states)
        try:
            yield
        finally:
            self._states = _states()
            _set(outer)


def _states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


class Batches:
    """The training batches of this process, epoch by epoch.

    What is in a batch depends on seed, epoch and its number alone: also with loaders of the user's
    own that draw from the global generators, as each pass has generators of its own.
    """

    def __init__(
        self, data: Data, accelerator: Accelerator, seed: int, *, skip: bool = False
    ) -> None:
        """Share ``data.train`` among the processes.

        Args:
            data: Made for the run.
            accelerator: Of the run.
            seed: Of the run.
            skip: Whether other samples stand in for bad ones, see :mod:`st3fx.data.guarded`.

        Raises:
            TrainError: When the loader has no length, on which all schedules rest, or no batch.
        """
        self._data = data
        self._seed = seed
        self._accelerator = accelerator
        # Of a shuffling sampler: its state goes on from pass to pass, so each pass sets it. Among
        # several processes Accelerate gives a sampler one, with another seed in each of them.
        given = getattr(data.train.sampler, "generator", None)
        self._shuffling = seed if given is None else given.initial_seed()
        self._skip = skip
        self.bad: list[Bad] = []
        """Samples of the last batch for which others stand in."""
        self._plain = guarded(data.train, skip=skip, train=True)
        self._loader = accelerator.prepare(self._plain)
        try:
            self.count = len(self._loader)
        except TypeError as error:
            raise TrainError(
                f"{data.name}: the training loader has no length, on which the schedules rest: "
                "give its data set __len__"
            ) from error
        if self.count == 0:
            raise TrainError(f"{data.name}: the training loader has no batch")
        # Samples of ours are functions of seed, epoch and index, so that a batch can be left out
        # unseen. With any other loader a batch is only what it is after those before it.
        self._skippable = isinstance(data.train.sampler, EpochSampler)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[int, Any]]:
        """Number and content, on the device, of the batches of ``epoch`` from ``skip`` on."""
        stream = Stream(self._seed, epoch)
        self._set_epoch(epoch)
        self._loader.set_epoch(epoch)
        unseen = min(skip, self.count) if self._skippable else 0
        if unseen == self.count:
            return
        loader = skip_first_batches(self._loader, unseen) if unseen else self._loader
        with stream.active():
            iterator = iter(loader)
        for number in itertools.count(unseen):
            with stream.active():
                batch = following(iterator, self._data.name, number)
            if batch is None:
                return
            told = heard(batch, f"{self._data.name}, training data", skip=self._skip)
            if number >= skip:
                self.bad = list(told.bad)
                yield number, told.batch

    def _set_epoch(self, epoch: int) -> None:
        self._data.set_epoch(epoch)
        generator = getattr(self._plain.sampler, "generator", None)
        if isinstance(generator, torch.Generator):
            words = np.random.SeedSequence((self._shuffling, epoch)).generate_state(1, np.uint64)
            generator.manual_seed(int(words[0]) >> 1)

    def sample(self, epoch: int, count: int) -> Iterator[Any]:
        """The first batches of ``epoch`` before they are shared: the same in all processes."""
        stream = Stream(self._seed, epoch)
        self._set_epoch(epoch)
        with stream.active():
            iterator = iter(self._plain)
        for number in range(count):
            with stream.active():
                batch = following(iterator, self._data.name, number)
            if batch is None:
                return
            told = heard(batch, f"{self._data.name}, training data", skip=self._skip)
            yield send_to_device(told.batch, self._accelerator.device)


class EvalBatches:
    """The test batches of this process, without bad samples if these are to be left out.

    Attributes:
        bad: Those that were met in the last pass.
    """

    def __init__(self, data: Data, accelerator: Accelerator, *, skip: bool = False) -> None:
        """Share ``data.test`` among the processes."""
        self._name, self._skip = f"{data.name}, test data", skip
        self._processes = accelerator.num_processes
        self._loader = accelerator.prepare(guarded(data.test, skip=skip, train=False))
        self.bad: list[Bad] = []

    def __iter__(self) -> Iterator[Any]:
        self.bad = []
        iterator = iter(self._loader)
        for number in itertools.count():
            batch = following(iterator, self._name, number)
            if batch is None:
                return
            told = heard(batch, self._name, skip=self._skip)
            if told.bad and self._processes > 1:
                raise DataError(
                    f"{self._name}: {told.bad[0].text}; several processes cannot leave test "
                    "samples out: mend it or take it out"
                )
            self.bad += told.bad
            if told.batch is not None:
                yield told.batch

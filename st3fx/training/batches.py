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
from st3fx.errors import TrainError
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

    def __init__(self, data: Data, accelerator: Accelerator, seed: int) -> None:
        """Share ``data.train`` among the processes.

        Raises:
            TrainError: When the loader has no length, on which all schedules rest, or no batch.
        """
        self._data = data
        self._seed = seed
        self._accelerator = accelerator
        self._loader = accelerator.prepare(data.train)
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
        self._data.set_epoch(epoch)
        self._loader.set_epoch(epoch)
        unseen = min(skip, self.count) if self._skippable else 0
        if unseen == self.count:
            return
        loader = skip_first_batches(self._loader, unseen) if unseen else self._loader
        with stream.active():
            iterator = iter(loader)
        for number in itertools.count(unseen):
            with stream.active():
                batch = next(iterator, None)
            if batch is None:
                return
            if number >= skip:
                yield number, batch

    def sample(self, epoch: int, count: int) -> Iterator[Any]:
        """The first batches of ``epoch`` before they are shared: the same in all processes."""
        stream = Stream(self._seed, epoch)
        self._data.set_epoch(epoch)
        with stream.active():
            iterator = iter(self._data.train)
        for _ in range(count):
            with stream.active():
                batch = next(iterator, None)
            if batch is None:
                return
            yield send_to_device(batch, self._accelerator.device)

"""Passes over the training data that can begin in the middle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator, skip_first_batches
from accelerate.utils import send_to_device

from st3fx.data.base import Data
from st3fx.data.order import EpochSampler
from st3fx.errors import TrainError
from st3fx.training.rng import Stream


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

"""Random generators: their states as plain tensors and numbers, and a second set of them.

A pass over the data draws from generators of its own. So the order of batches and what is done to
them depend on seed and epoch alone, whatever dropout draws meanwhile, and a pass can be replayed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from st3fx.core.state import preserved_rng, seed_everything


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

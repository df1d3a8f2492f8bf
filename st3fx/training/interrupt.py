"""Ctrl-C and SIGTERM: the first is a wish that the loop fulfils, the second ends the process."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator


class Interrupted(BaseException):
    """Training was stopped by a signal, after its state was saved.

    Not an ``Exception``, like ``KeyboardInterrupt``: user code that catches everything must not
    swallow it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Interrupt:
    """Within, the first SIGINT or SIGTERM only sets ``requested``."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._saved: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._saved[number] = signal.signal(number, self._note)
            except ValueError:
                # Not the main thread: signals go to whoever called us, as they did before.
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = number
        elif number == signal.SIGINT:
            # Asked twice: whoever waits for the save of a large model may not want to.
            raise KeyboardInterrupt
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any of the processes got, the same answer in all; all must call it."""
        if accelerator.num_processes == 1:
            return self.requested
        mine = torch.tensor([self.requested or 0], device=accelerator.device)
        everyones: torch.Tensor = accelerator.gather(mine)
        return int(everyones.max()) or None

"""Processes that are forked while threads run our kernels: the child runs them too, and ends.

What a thread holds at that moment (a lock, scratch memory) is held for ever in the child, which
does not have the thread. A case is one fork at a moment that the seed draws.
"""

from __future__ import annotations

import functools
import os
import random
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import st3fx
from st3fx import runtime

SECONDS = 20.0
"""In which a child must have ended; it needs milliseconds."""

Work = Callable[[], bytes]


class Perceptron(nn.Module):
    """Layers that are large enough for sparse kernels to gain."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(512, 512)
        self.second = nn.Linear(512, 512)
        self.head = nn.Linear(512, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.first(x).relu()).relu()
        return self.head(hidden)  # type: ignore[no-any-return] # a module's call is of any type


@functools.cache
def _file() -> Path:
    """A sparse model with our operators in it."""
    torch.manual_seed(0)
    model, example = Perceptron(), torch.randn(2, 512)
    converted, _ = st3fx.convert(model, example, method=st3fx.ST3(sparsity=0.95))
    st3fx.Sparsifier(converted).set_sparsity(0.95)
    path = Path(tempfile.mkdtemp(prefix="st3fx-forks-")) / "net.onnx"
    result = st3fx.export_onnx(st3fx.fold(converted), example, path, sparse_kernels=True)
    assert result.sparse is not None
    assert result.sparse.kernels.sparse
    return path


@functools.cache
def _works() -> dict[str, Work]:
    """What threads and children do, which gives the same bytes each time."""
    threads, forked = (runtime.session(_file(), threads=1) for _ in range(2))
    x = np.random.default_rng(0).standard_normal((3, 512), dtype=np.float32)
    name, parent = threads.get_inputs()[0].name, os.getpid()
    example = torch.randn(2, 512)
    model, _ = st3fx.convert(Perceptron(), example, method=st3fx.ST3(sparsity=0.9))
    sparsifier = st3fx.Sparsifier(model)
    lock = threading.Lock()

    def run() -> bytes:
        # ONNX Runtime 1.32 has locks of its own in a session, which a fork can leave taken: 23 of
        # 2,868 children hung in a plain session that threads were in. All sessions share what is
        # ours, the kernels' scratch memory.
        session = threads if os.getpid() == parent else forked
        output: bytes = session.run(None, {name: x})[0].tobytes()
        return output

    def threshold() -> bytes:
        # Not two at once on one model; the lock is this module's own, so a child has another.
        with locks.get(os.getpid(), lock):
            sparsifier.set_sparsity(0.5)
            return b"" if abs(sparsifier.sparsity - 0.5) < 0.01 else b"wrong"

    locks: dict[int, threading.Lock] = {}
    os.register_at_fork(after_in_child=lambda: locks.__setitem__(os.getpid(), threading.Lock()))
    return {"a session": run, "thresholds": threshold}


def case(seed: int, folder: Path) -> str | None:
    """One fork under load."""
    choose, works = random.Random(seed), _works()
    if choose.random() < 0.3:
        torch.set_num_threads(2)  # of the runtime's, of which a child has none
    busy = [choose.choice(list(works)) for _ in range(choose.randint(1, 4))]
    tried = choose.choice(list(works))
    wanted = works[tried]()
    stop = threading.Event()

    def work(name: str) -> None:
        while not stop.is_set():
            works[name]()

    threads = [threading.Thread(target=work, args=(name,)) for name in busy]
    for thread in threads:
        thread.start()
    try:
        time.sleep(choose.uniform(0.0, 0.02))
        said = _child(lambda: works[tried]() == wanted)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if works[tried]() != wanted:
        said = said or "the parent gives other bytes afterwards"
    return said and f"{tried} in a child, while threads run {', '.join(busy)}: {said}"


def _child(holds: Callable[[], bool]) -> str | None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"2"
        try:
            answer = b"0" if all(holds() for _ in range(3)) else b"1"
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    ended, _, _ = select.select([reader], [], [], SECONDS)
    if not ended:
        os.kill(child, signal.SIGKILL)
    answer = os.read(reader, 1) if ended else b"hung"
    os.close(reader)
    os.waitpid(child, 0)
    words = {b"0": None, b"1": "other bytes", b"2": "it raised", b"hung": "it hung", b"": "it died"}
    return words[answer]

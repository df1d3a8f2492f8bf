"""Packed sequences in a trace: how many rows they have depends on the data of the lengths."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

from st3fx.passes.replacing import of_proxies, replaced


@contextlib.contextmanager
def packing(tracer: Any) -> Iterator[None]:
    """Packing is a node inside, also where a model's code has imported it by its name."""
    changes = _functions(tracer)
    names = {type(module).__module__ for module in tracer.root.modules()}
    files = [sys.modules[name] for name in names if name in sys.modules]
    own = {id(getattr(nn.utils.rnn, name)): value for name, value in changes.items()}
    with contextlib.ExitStack() as stack:
        for file in files:
            if not file.__name__.startswith("torch."):
                found = {key: own[id(f)] for key, f in vars(file).items() if id(f) in own}
                stack.enter_context(replaced(file, found))
        stack.enter_context(replaced(nn.utils.rnn, changes))
        yield


def _functions(tracer: Any) -> dict[str, Callable[..., Any]]:
    """Name in torch.nn.utils.rnn -> what takes its place."""
    rnn: Any = nn.utils.rnn
    pack, pad = (of_proxies(tracer, f) for f in (rnn.pack_padded_sequence, rnn.pad_packed_sequence))
    fields = rnn._packed_sequence_init_args

    def packed(*args: Any, **kwargs: Any) -> Any:
        made = pack(*args, **kwargs)
        is_sorted = kwargs.get("enforce_sorted", args[3] if len(args) > 3 else True)
        return rnn.PackedSequence(made[0], made[1], *([] if is_sorted else [made[2], made[3]]))

    def padded(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        made = pad(*args, **kwargs)
        return made[0], made[1]

    def unchecked(data: Any, sizes: Any, order: Any = None, back: Any = None) -> tuple[Any, ...]:
        """The class's constructor asks where the sizes lie."""
        if not issubclass(type(data), fx.Proxy):
            return tuple(fields(data, sizes, order, back))
        return data, sizes, order, rnn.invert_permutation(order) if back is None else back

    return {
        "pack_padded_sequence": packed,
        "pad_packed_sequence": padded,
        "_packed_sequence_init_args": unchecked,
    }

"""Effective weights between two optimizer steps: computed once, checked at every use.

A sparsifier's step computes the effective weights of all sites in one pass (:func:`refresh`), and
every forward until the next one finds them here. A change behind the sparsifier's back is noticed:
by the version counters and storages of weight, threshold and mask, and on a CPU also by a digest of
the weight and the threshold, which writes through ``.data`` or NumPy change without a trace. On
other devices such a digest would have to be waited for; there a forward without gradients computes
anew, and one with gradients relies on the counters, and on being told of steps of optimizers, of
which fused ones write without a trace.

Only what forwards ask for is kept, and only of parameters themselves: FSDP2's are gathered anew for
each forward. Entries die with their parameters and are no part of any model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakIdKeyDictionary

from st3fx.errors import StateError
from st3fx.process_lock import ProcessLock
from st3fx.sparsity.digest import Digest, digests
from st3fx.sparsity.formula import Inputs, Job, evaluate


@dataclass
class _Entry:
    """The effective weight of one parameter, and what it was computed from."""

    effective: Tensor
    stamp: tuple[Any, ...] = ()
    weight_stamp: tuple[Any, ...] = ()
    memory: tuple[StorageWeakRef, ...] = ()
    """Keeps the identities in the stamp from coming back for other storages."""
    digest: tuple[Digest, ...] = ()
    version: int = 0
    """Of the effective weight when it was computed: nobody else may write to it."""
    used: bool = True
    whole: bool = True
    """Whether nobody writes to it: in a child of a fork, nobody would go on with it."""

    def make_room(self, weight: Tensor, *, in_place: bool) -> Tensor:
        """What to compute it into.

        In place no new memory is touched, and a graph that still holds it gets autograd's error.
        """
        if not in_place or not _alike(self.effective, weight):
            self.effective = torch.empty_like(weight, requires_grad=False)
        return self.effective

    def is_fresh(self, inputs: Inputs) -> bool:
        """Whether nothing has changed since."""
        if not self.whole or self.stamp != _stamp(inputs):
            return False
        return self.digest == tuple(digests(_digested(inputs)))

    def require_untouched(self) -> None:
        """Refuse to go on with an effective weight that other code wrote to.

        Raises:
            StateError: With its shape: it does not know its name.
        """
        if self.whole and self.effective._version != self.version:
            shape = "x".join(map(str, self.effective.shape))
            self.version = self.effective._version
            self.stamp = ()  # said once: it is computed anew
            raise StateError(
                f"the effective weight of a site of shape {shape} was written to, which changes no "
                "weight: write to the latent weight, model.get_parameter(NAME), or fold first"
            )


_ENTRIES: Any = WeakIdKeyDictionary()  # parameter -> entry
_LEARNED: Any = WeakIdKeyDictionary()  # what is learned -> entry, where no digest tells
_WANTED: Any = WeakIdKeyDictionary()  # parameters that were asked for and have no entry
_LOCK = ProcessLock()


@dataclass
class _Traceless:
    """How many writes to weights a digest alone has told of: thresholds may not fit any more."""

    count: int = 0


traceless = _Traceless()


def lookup(inputs: Inputs, *, differentiable: bool) -> Tensor | None:
    """The effective weight of a parameter as it is now; ``None`` if it is not kept.

    With gradients an alias of the kept one. Without them a copy: a compiled graph, which calls the
    operator without gradients, may take its result's memory for something else.

    Args:
        inputs: What it would be computed from; only that of parameters is kept.
        differentiable: Whether the forward records gradients.
    """
    weight = inputs.weight
    if not _can_be_kept(weight) or _get_current_dispatch_mode() is not None:
        return None
    if not differentiable and weight.device.type != "cpu":
        return None
    entry = _ENTRIES.get(weight)
    if entry is None:
        _WANTED[weight] = True
        return None
    with _LOCK:
        entry.used = True
        entry.require_untouched()
        if not entry.is_fresh(inputs):
            if entry.whole and entry.stamp == _stamp(inputs):
                traceless.count += 1
            entry.whole = False
            # A forward under way may hold the other one.
            inputs.evaluate(entry.make_room(weight, in_place=False))
            _note(inputs, entry)
        # An alias shares the version counter: a graph that outlives the next refresh gets
        # autograd's error instead of other weights.
        alias: Tensor = entry.effective.detach()
        return alias if differentiable else alias.clone()


def refresh(sites: Iterable[Inputs], known: Mapping[int, Digest] | None = None) -> None:
    """Compute the effective weights of the sites that forwards have asked for since last time.

    Args:
        sites: What they are computed from.
        known: Digests of weights as they are now, by the weights' identities.
    """
    known = {} if known is None else known
    # Made in inference mode, they could not be saved for a backward later on.
    with _LOCK, torch.inference_mode(False), torch.no_grad():
        entries = [(inputs, entry) for inputs in sites if (entry := _asked_for(inputs.weight))]
        tensors = [t for inputs, _ in entries for t in _digested(inputs)]
        found = iter(digests([t for t in tensors if id(t) not in known]))
        jobs = []
        for inputs, entry in entries:
            own = _digested(inputs)
            digest = tuple(known[id(t)] if id(t) in known else next(found) for t in own)
            hidden = () in digest  # nothing would tell of what a fused optimizer has written
            if hidden:
                _watch_optimizers()
                for learned in (inputs.threshold, *inputs.learned):
                    if isinstance(learned, nn.Parameter):
                        _LEARNED[learned] = entry
            changed = entry.stamp != _stamp(inputs) or entry.digest != digest
            if hidden or changed or not entry.whole:
                # Only a weight that has changed is like a dense one that an optimizer has written
                # to, whose graphs autograd refuses. Where the threshold alone has, a graph that is
                # under way keeps what it holds.
                written = entry.weight_stamp != _where(inputs.weight) or entry.digest != digest
                in_place = written or not _is_held(entry.effective)
                entry.whole = False
                jobs.append((Job(inputs, entry.make_room(inputs.weight, in_place=in_place)), entry))
            entry.digest = digest
            entry.used = False
        evaluate([job for job, _ in jobs])
        for job, entry in jobs:
            torch.autograd.graph.increment_version(entry.effective)  # kernels write by address
            _stamp_entry(job.inputs, entry)


def _watch_optimizers() -> None:
    """Have torch's optimizers say, from now on, whose parameters they are about to write to."""
    if not _WATCHED:
        _WATCHED.append(register_optimizer_step_pre_hook(_before_optimizer))


_WATCHED: list[Any] = []
"""The hook on all optimizers; there is none as long as digests tell of every write."""


def _before_optimizer(optimizer: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for entry in (_ENTRIES.get(parameter), _LEARNED.get(parameter)):
                if entry is not None and () in entry.digest:
                    entry.stamp = ()


def _is_held(effective: Tensor) -> bool:
    """Whether a graph still holds an alias of an effective weight."""
    uses: int = torch._C._storage_Use_Count(effective.untyped_storage()._cdata)
    return uses > _OWN_USES


_OWN_USES = 2
"""References to a storage that only one tensor has, while it is asked for them."""


def _asked_for(weight: Tensor) -> _Entry | None:
    """The entry of a weight that forwards ask for: a new one, or the present one if it was used."""
    if not _can_be_kept(weight):
        return None
    if weight in _WANTED:
        del _WANTED[weight]
        _ENTRIES[weight] = _Entry(torch.empty(0))
    entry: _Entry | None = _ENTRIES.get(weight)
    if entry is not None and not entry.used:  # a compiled graph has taken over
        del _ENTRIES[weight]
        return None
    return entry


def forget(weights: Iterable[Tensor]) -> None:
    """Drop what is kept for these parameters."""
    for weight in weights:
        _ENTRIES.pop(weight, None)
        _WANTED.pop(weight, None)


def _can_be_kept(weight: Tensor) -> bool:
    """A parameter itself, with a version counter (inference tensors have none)."""
    return type(weight) is nn.Parameter and not weight.is_inference()


def _alike(kept: Tensor, weight: Tensor) -> bool:
    return (
        kept.shape == weight.shape
        and kept.stride() == weight.stride()
        and kept.dtype == weight.dtype
        and kept.device == weight.device
    )


def _stamp(inputs: Inputs) -> tuple[Any, ...]:
    """Differs when the tensors were written to, or have other memory, or the formula is another."""
    threshold = inputs.threshold
    if threshold.device.type == "cpu" and threshold.dim() == 0:
        level: Any = threshold.item()  # data parallelism writes the same value again and again
    else:
        level = _where(threshold)
    mask = _where(inputs.mask) if inputs.mask.numel() else ()
    learned = inputs.learned
    plain = inputs.constants[len(learned) :]
    return (inputs.formula, *map(_where, learned), *plain, level, mask, _where(inputs.weight))


def _where(tensor: Tensor) -> tuple[Any, ...]:
    """Version and memory."""
    storage = tensor.untyped_storage()._cdata
    return (tensor._version, storage, tensor.storage_offset(), tensor.dtype)


def _note(inputs: Inputs, entry: _Entry) -> None:
    """The entry was computed from these inputs."""
    entry.digest = tuple(digests(_digested(inputs)))
    _stamp_entry(inputs, entry)


def _stamp_entry(inputs: Inputs, entry: _Entry) -> None:
    entry.stamp, entry.version = _stamp(inputs), entry.effective._version
    entry.weight_stamp = _where(inputs.weight)
    held = (inputs.weight, inputs.threshold, inputs.mask, *inputs.learned)
    entry.memory = tuple(StorageWeakRef(tensor.untyped_storage()) for tensor in held)
    entry.whole = True


def _digested(inputs: Inputs) -> list[Tensor]:
    """What an entry is digested from; a threshold of no dimensions is part of the stamp."""
    own = [inputs.weight, *inputs.learned]
    return [*own, inputs.threshold] if inputs.threshold.dim() else own

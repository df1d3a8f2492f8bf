"""What a training needs in memory beyond its weights, before its first step, and what there is.

The sum of gradients, effective weights, state of the optimizer, and what a forward keeps for the
backward of one batch. The last is measured: autograd is asked what it saves for 2 and for 4
samples, which gives what each further sample takes. Caches of libraries and workers that load data
are in no number, so that what does not fit by this does not fit at all.
"""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from st3fx.data.base import Data
from st3fx.methods.base import DrawnMethod
from st3fx.modules.marks import conversion_of
from st3fx.modules.state import preserved
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training.evaluate import call
from st3fx.training.settings import Settings

GIGABYTE = 1e9


@dataclass(frozen=True)
class Needed:
    """Bytes that a training will take.

    Attributes:
        gradients: Of all parameters that are trained.
        effective: Effective weights of the sites.
        optimizer: Its state.
        activations: What a forward of one batch keeps.
        batch: Samples of it.
    """

    gradients: int
    effective: int
    optimizer: int
    activations: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gradients + self.effective + self.optimizer + self.activations

    def warning(self, free: int) -> str | None:
        """One line where it does not fit into what is free, else nothing."""
        if self.total <= free:
            return None
        fixed = self.total - self.activations
        fits = int((free - fixed) * self.batch / self.activations) if self.activations else 0
        way_out = (
            f"a --batch-size of about {fits} fits, with --grad-accum-steps for as many samples a "
            "step" if 0 < fits < self.batch else "a smaller model or a larger machine is needed"
        )  # fmt: skip
        return (
            f"memory is expected to run out: {_size(self.total)} more are needed (activations of "
            f"{self.batch} samples {_size(self.activations)}, gradients {_size(self.gradients)}, "
            f"optimizer {_size(self.optimizer)}, effective weights {_size(self.effective)}), and "
            f"{_size(free)} are free: {way_out}"
        )


def _size(amount: float) -> str:
    number = amount / GIGABYTE
    return f"{number:.2g} GB" if number < 10 else f"{number:,.0f} GB"


def needed(model: nn.Module, data: Data, settings: Settings) -> Needed | None:
    """What a training of a converted model will take; ``None`` where that cannot be measured.

    Args:
        model: Converted, on its device; it is as before afterwards.
        data: Gives samples.
        settings: Of the run.
    """
    if isinstance(data.train.dataset, IterableDataset):
        return None  # one that is read once only would lose these samples
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    states = {"sgd": 1 if settings.momentum else 0}.get(settings.opt, 2)
    drawn = 0
    if isinstance(conversion_of(model).method, DrawnMethod):  # Adam's, beside SGD
        drawn = sum(p.nbytes for p in Sparsifier(model).threshold_parameters())
    try:
        few, more = (_saved(model, data.example(count), settings) for count in (2, 4))
    except Exception:  # noqa: BLE001  the training itself says what is wrong with the model
        return None
    each = max(0, more - few) / 2
    effective = 4 * conversion_of(model).plan.numel
    constant = max(0, few - 2 * each - effective)  # a forward keeps effective weights, too
    return Needed(
        gradients=trained,
        effective=effective,
        optimizer=states * (trained - drawn) + 2 * drawn,
        activations=round(constant + each * settings.batch_size),
        batch=settings.batch_size,
    )


def _saved(model: nn.Module, inputs: Any, settings: Settings) -> int:
    """Bytes that autograd keeps for the backward of one call, beside the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    kept = []  # so that no storage's place is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    device = next(model.parameters()).device
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    mixed = (
        torch.autocast(device.type, kinds[settings.precision])
        if settings.precision in kinds
        else contextlib.nullcontext()
    )
    with (
        preserved(model),
        torch.enable_grad(),
        mixed,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        outputs = call(model.train(), _to(inputs, device))
        del outputs
    return sum(seen.values())


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(item, device) for item in value)
    return value


def available(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; ``None`` where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = [*_of_machine(), *_of_groups(), *_of_limit()]
    here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
    return min(found) // here if found else None


def _of_machine(file: Path = Path("/proc/meminfo")) -> list[int]:
    """What the machine can give without swapping."""
    lines = _text(file).splitlines()
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _of_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What the limits of containers leave, of either version of control groups.

    Pages of files that are not in use count against a limit, but are given up for others.
    """
    found = []
    for line in _text(own).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory") and "memory" not in kinds.split(","):
            continue
        names = ("memory.max", "memory.current", "inactive_file") if kinds == "" else (
            "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        )  # fmt: skip
        top = root if kinds == "" else root / "memory"
        place = top / path.lstrip("/")
        for folder in (place, *place.parents):
            found += _left(folder, *names)
            if folder == top:
                break
    return found


def _left(folder: Path, limit: str, usage: str, idle: str) -> list[int]:
    most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    # Without a limit there is the word max, or a number that no machine has.
    if not (most.isdigit() and used.isdigit()) or int(most) >= 2**60:
        return []
    stat = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
    return [max(0, int(most) - int(used) + int(stat.get(idle, "0")))]


def _of_limit() -> list[int]:
    """What ``ulimit -v`` leaves."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(Path("/proc/self/statm")).split()
    if soft == resource.RLIM_INFINITY or not pages:
        return []
    return [max(0, soft - int(pages[0]) * resource.getpagesize())]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""

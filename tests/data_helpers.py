"""Short forms for the tests of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from st3fx.data import Data, DataSettings, make_data


def make(name: str, path: Path | None = None, **settings: Any) -> Data:
    """Data in batches of four."""
    where = None if path is None else str(path)
    return make_data(DataSettings(name=name, path=where, batch_size=4, **settings))


def everything(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """All inputs and all targets of one pass."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)

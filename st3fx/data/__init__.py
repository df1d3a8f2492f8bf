"""Data for training: loaders whose every sample depends on seed, epoch and index alone."""

from __future__ import annotations

from st3fx.data.base import Data, DataSettings
from st3fx.data.table import DATASETS, make_data

__all__ = ["DATASETS", "Data", "DataSettings", "make_data"]

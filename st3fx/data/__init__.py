"""Data for training: loaders whose every sample depends on seed, epoch and index alone.

``table`` has the names that ``--data`` takes, ``base`` what each of them gives; the others read one
kind of data each. It may import torch and files, and no model; start at ``make_data``.
"""

from __future__ import annotations

from st3fx.data.base import Data, DataSettings
from st3fx.data.table import DATASETS, make_data

__all__ = ["DATASETS", "Data", "DataSettings", "make_data"]

"""The table of data sets, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable

from st3fx.data.base import Data, DataSettings
from st3fx.data.fashion_mnist import fashion_mnist, fashion_mnist_mini
from st3fx.errors import DataError
from st3fx.messages import suggest

DATASETS: dict[str, Callable[[DataSettings], Data]] = {
    "fashion-mnist-mini": fashion_mnist_mini,
    "fashion-mnist": fashion_mnist,
}
"""Name -> maker."""


def make_data(settings: DataSettings) -> Data:
    """Loaders of the data that the settings name.

    Raises:
        DataError: When there is no such data set, or it is not where it should be.
    """
    if settings.name in DATASETS:
        return DATASETS[settings.name](settings)
    close = suggest(settings.name, list(DATASETS))
    raise DataError(
        f"no data set {settings.name!r}{close or '; there are ' + ', '.join(DATASETS)}, "
        "or give loaders.py:make_loaders"
    )

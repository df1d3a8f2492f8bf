"""The table of data sets, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable

from st3fx.core.messages import suggest
from st3fx.data.base import Data, DataSettings
from st3fx.data.cifar import cifar10, cifar100
from st3fx.data.fashion_mnist import fashion_mnist, fashion_mnist_mini
from st3fx.data.image_folder import image_folder
from st3fx.data.user import is_user_data, user_data
from st3fx.errors import DataError

DATASETS: dict[str, Callable[[DataSettings], Data]] = {
    "fashion-mnist-mini": fashion_mnist_mini,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagefolder": image_folder,
}
"""Name -> maker."""


def make_data(settings: DataSettings) -> Data:
    """Loaders of the data that the settings name.

    Raises:
        DataError: When there is no such data set, or it is not where it should be.
    """
    if settings.name in DATASETS:
        return DATASETS[settings.name](settings)
    if is_user_data(settings.name):
        return user_data(settings)
    close = suggest(settings.name, list(DATASETS)) or f"; there are {', '.join(DATASETS)}"
    raise DataError(
        f"no data set {settings.name!r}{close} (loaders of your own: loaders.py:make_loaders)"
    )

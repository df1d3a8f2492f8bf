"""The table of data sets, and loaders of the user's own, which a Python file returns."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch.utils.data import DataLoader

from st3fx.data.base import Data, DataSettings, kind_of
from st3fx.data.cifar import cifar10, cifar100
from st3fx.data.fashion_mnist import fashion_mnist, fashion_mnist_mini
from st3fx.data.hugging_face import hugging_face
from st3fx.data.image_folder import image_folder
from st3fx.data.shards import shards
from st3fx.errors import DataError, SpecError, suggest
from st3fx.loading.factory import require_users, required_arguments, user_code
from st3fx.loading.spec import Spec, import_spec, parse_spec
from st3fx.loading.trust import DATA
from st3fx.modules.state import preserved_rng, seed_everything

DEFAULT = "make_loaders"
"""The function where the name is a file alone."""


def is_user_data(name: str) -> bool:
    """Whether ``name`` has the form of a file or of ``package.module:callable``."""
    try:
        return parse_spec(name).kind in ("file", "module")
    except SpecError:
        return False


def user_data(settings: DataSettings) -> Data:
    """What the user's function returns.

    It is called with those of ``batch_size``, ``eval_batch_size``, ``seed``, ``path``,
    ``workers``, ``augment``, ``channels`` and ``image_size`` that it has parameters for, while the
    random generators are seeded.

    Raises:
        DataError: When there is no such function, it needs other arguments, raises (its exception
            is the cause's cause) or returns anything but two DataLoaders or a ``Data``.
    """
    spec = parse_spec(settings.name)
    name = spec.factory or DEFAULT
    try:
        with preserved_rng():
            seed_everything(settings.seed)
            module = import_spec(spec, settings.permit, DATA)[0]
            function = _lookup(module, name, spec)
            require_users(function, f"{spec.target}: {name}")
            arguments = _arguments(function, settings, f"{spec.target}: {name}()")
            with user_code(f"{spec.target}: {name}()"):
                value = function(**arguments)
    except SpecError as error:
        raise DataError(str(error)) from error
    return _checked(value, settings.name, f"{spec.target}: {name}()")


def _lookup(module: ModuleType, name: str, spec: Spec) -> Callable[..., Any]:
    try:
        function: Any = operator.attrgetter(name)(module)
    except AttributeError as error:
        options = [key for key, value in vars(module).items() if callable(value)]
        raise DataError(
            f"{spec.target} has no {name!r}{suggest(name, options)}; define {name}(batch_size, "
            "seed) that returns (train_loader, test_loader)"
        ) from error
    if not callable(function):
        raise DataError(f"{spec.target}: {name} is {kind_of(function)}, not a function")
    return function  # type: ignore[no-any-return]


def _arguments(
    function: Callable[..., Any], settings: DataSettings, where: str
) -> dict[str, object]:
    """Those of the settings that ``function`` takes by keyword."""
    offered: dict[str, object] = {
        "batch_size": settings.batch_size,
        "eval_batch_size": settings.test_batch_size,
        "seed": settings.seed,
        "path": settings.path,
        "workers": settings.workers,
        "augment": settings.augment,
        "channels": settings.channels,
        "image_size": settings.image_size,
    }
    unknown = [name for name in required_arguments(function) if name not in offered]
    if unknown:
        raise DataError(
            f"{where} needs arguments ({', '.join(unknown)}) that it is not given; give them "
            f"defaults. It may have {', '.join(offered)}"
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in offered.items() if name in taken}


def _checked(value: object, name: str, where: str) -> Data:
    if isinstance(value, Data):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        wrong = [part for part in value if not isinstance(part, DataLoader)]
        if not wrong:
            return Data(value[0], value[1], name, input_shape=None, num_classes=None)
        came = f"a pair with {kind_of(wrong[0])} in it"
    else:
        came = kind_of(value)
    raise DataError(
        f"{where} returned {came}; return (train_loader, test_loader), two "
        "torch.utils.data.DataLoader, or a st3fx.data.Data"
    )


DATASETS: dict[str, Callable[[DataSettings], Data]] = {
    "fashion-mnist-mini": fashion_mnist_mini,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagefolder": image_folder,
    "webdataset": shards,
    "huggingface": hugging_face,
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

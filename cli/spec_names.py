"""Names of the models that a SPEC may have, read from the libraries' sources.

Importing torchvision or timm takes seconds, and completion must answer while a key is pressed.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

REFERENCE_MODELS = (
    "resnet20", "resnet32", "resnet56", "vgg19_bn", "wide_resnet", "mobilenet_v1", "lenet_300_100",
    "lstm_rows",
)  # fmt: skip
"""Keys of ``st3fx.models.MODELS``, which takes seconds to import; a test holds them equal."""

LIBRARIES = ("st3fx", "torchvision", "timm")

_REGISTERED = re.compile(
    r"""^@register_model(?:\((?:name=)?(?:"(?P<name>\w+)")?\))?\n"""
    r"""(?:[@ )].*\n)*"""  # other decorators, over several lines
    r"""def (?P<function>\w+)""",
    re.MULTILINE,
)


def model_names(library: str) -> list[str]:
    """Names that ``library:NAME`` may have; none if the library is not there."""
    if library == "st3fx":
        return list(REFERENCE_MODELS)
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "models"
    found = set()
    for path in folder.rglob("*.py"):
        for match in _REGISTERED.finditer(path.read_text(encoding="utf-8")):
            found.add(match["name"] or match["function"])
    return sorted(found)

"""A compiler for sparse training: from any PyTorch model to static sparse weights.

Importing it costs nothing: torch takes seconds to import, and ``st3fx --help`` needs none of it.
The first name that is used imports the rest; ``import st3fx.methods`` does so for a program that
only loads saved graphs with the operators ``torch.ops.st3fx`` in them.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from st3fx.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from st3fx.public import *  # noqa: F403 (for static tools; at run time __getattr__ gives these)
else:

    def __getattr__(name: str) -> object:
        """A public name, or a submodule, imported when it is first asked for."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        try:
            value = getattr(importlib.import_module(f"{__name__}.public"), name)
        except AttributeError as error:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """The public names, and what is imported already."""
        return sorted({*globals(), *__getattr__("__all__")})

"""The settings of a conversion, once: the signature of ``convert``, files and flags spell them so.

Each field carries what is needed to read it from a file or a flag. Recipes of bundles and the
settings of a training have these fields among their own; options are made of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


def setting(
    section: str,
    default: Any,
    help: str,  # noqa: A002 (what it is called everywhere else)
    *,
    flags: str = "",
    metavar: str = "TEXT",
    choices: tuple[str, ...] = (),
    least: float | None = None,
    below: float | None = None,
    free: bool = False,
) -> Any:
    """A field with what is needed to read it from a file or a flag.

    Args:
        section: Where it is listed, one of ``SECTIONS`` in :mod:`st3fx.training.settings`.
        default: Its value where nothing is said.
        help: What ``--help`` and the comment in ``settings.toml`` say of it.
        flags: Spellings on the command line; by default the field's name with dashes.
        metavar: What ``--help`` calls its value, if that is a text.
        choices: The values that it may have.
        least: Smallest value allowed.
        below: Values must be smaller than this.
        free: Whether it may change when a run is resumed: it does not touch the weights.
    """
    metadata = {
        "section": section, "help": help, "flags": tuple(flags.split()), "metavar": metavar,
        "choices": choices, "least": least, "below": below, "free": free,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """Which weights of a model become sparse, and what becomes of zeros that they have.

    ``st3fx.convert`` says more of each. From Python, ``include`` and ``exclude`` may have other
    selectors than globs, too (:mod:`st3fx.plan.selection`).
    """

    include: tuple[Any, ...] = setting(
        "model", (), "Only weights whose full name matches, e.g. 'layer*.weight'. Repeatable.",
        metavar="GLOB",
    )  # fmt: skip
    exclude: tuple[Any, ...] = setting(
        "model", (), "No weight whose full name matches. Repeatable.", metavar="GLOB"
    )
    skip_depthwise: bool = setting("model", False, "Leave depthwise convolutions dense.")
    skip_first: bool = setting("model", False, "Leave the first site dense.")
    skip_last: bool = setting("model", False, "Leave the last site dense.")
    include_tied: bool = setting(
        "model", False,
        "Make the projection of a tied embedding sparse too; its lookups stay dense.",
    )  # fmt: skip
    keep_zeros: bool = setting(
        "model", True,
        "Of weights that come with zeros, of a folded model: let these stay zero while training "
        "adds others, or come back while others go. The sparsity starts at their share either way.",
    )  # fmt: skip
    recompute_weights: bool = setting(
        "model", False,
        "Keep no effective weights: compute them in each forward, and again in its backward. Saves "
        "the weights' bytes once; the results are the same.", free=True,
    )  # fmt: skip

    def of_conversion(self) -> dict[str, Any]:
        """These by name, also where an object has others beside them."""
        return {name: getattr(self, name) for name in NAMES}


NAMES = tuple(field.name for field in dataclasses.fields(ConversionSettings))
"""Names of the settings of a conversion."""

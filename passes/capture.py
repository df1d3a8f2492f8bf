"""One traced forward."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from st3fx.core.calls import CallSpec
from st3fx.core.definitions import Definitions
from st3fx.core.graphs import Guard

HANDED = "handed"
"""Mark of a graph's read of a parameter that code got by another way than by its attribute."""


@dataclass
class Capture:
    """One traced forward.

    Attributes:
        name: Full name of the module in the model.
        spec: The calls that the graph answers.
        graph: Its placeholders are the call's tensors in order; targets are relative to the module.
        guards: What the traced code read.
        definitions: What it found on classes and in globals.
        inlined: Relative names of the modules that were traced through, the root included.
        leaves: Relative names of called submodules with sites in them, with the reason.
        stores: Relative names of the attributes that a call sets; if there are some, the graph
            gives the output and a list of their values.
    """

    name: str
    spec: CallSpec
    graph: fx.Graph
    guards: list[Guard] = field(default_factory=list)
    definitions: Definitions = field(default_factory=Definitions)
    inlined: dict[str, None] = field(default_factory=dict)
    leaves: dict[str, str] = field(default_factory=dict)
    stores: list[str] = field(default_factory=list)

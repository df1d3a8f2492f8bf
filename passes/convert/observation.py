"""What was observed of a model: what each of its parameters does when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from st3fx.graphs.calls import CallSpec
from st3fx.modules.state import LeftBehind
from st3fx.plan.sites import Layout


@dataclass(frozen=True)
class Multiplication:
    """One operator that multiplies with a parameter.

    Attributes:
        parameter: Full name.
        op: ``conv2d``, ``linear``, ``matmul``, ...
        module: Full name of the module whose own forward issued it.
        layout: Where the parameter's output channels lie.
        groups: Groups of a convolution.
        computed: Whether the multiplied tensor was computed from the parameter first.
    """

    parameter: str
    op: str
    module: str
    layout: Layout
    groups: int
    computed: bool


class Seen(NamedTuple):
    """One way in which a module is called.

    Attributes:
        training: Its mode.
        spec: The structure of the call.
        run: The run of the model, a key of :attr:`Observation.left`, that it was seen in first.
    """

    training: bool
    spec: CallSpec
    run: TrialRun


class TrialRun(NamedTuple):
    """One run of an example: its number among the examples, and the mode."""

    example: int
    training: bool


@dataclass
class Observation:
    """What a model does with its parameters when it runs.

    Attributes:
        multiplications: An ordered set, in the order of their execution.
        other_uses: Parameter -> operators that mix it with activations without multiplying.
        readers: Parameter -> modules whose own forward issued these.
        computing: Parameter -> modules whose own forward computes with its values alone.
        handed: Parameters that code gets by ``parameters()`` or a state dict while it runs.
        given: Parameters that reach an output without meeting an activation.
        unseen: Parameters that change an output though no operator was seen to read them.
        calls: Module -> the distinct ways in which it is called.
        macs: Parameter -> multiplications with all of its scalars in the calls in train mode.
        left: TrialRun -> what the forward leaves in its modules' attributes.
        written: Parameters that it writes to, as some clamp a temperature -> the modules whose own
            forward does.
    """

    multiplications: dict[Multiplication, None] = field(default_factory=dict)
    other_uses: dict[str, set[str]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    computing: dict[str, set[str]] = field(default_factory=dict)
    handed: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)
    calls: dict[str, list[Seen]] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    left: dict[TrialRun, list[LeftBehind]] = field(default_factory=dict)
    written: dict[str, set[str]] = field(default_factory=dict)

    def add_written(self, written: Mapping[str, set[str]]) -> None:
        """Add to :attr:`written`."""
        for name, modules in written.items():
            self.written.setdefault(name, set()).update(modules)

    def multiplied(self) -> dict[str, list[Multiplication]]:
        """Multiplications by parameter, in the order of first use."""
        table: dict[str, list[Multiplication]] = {}
        for item in self.multiplications:
            table.setdefault(item.parameter, []).append(item)
        return table

    def reached(self) -> set[str]:
        """All parameters whose values may reach an output."""
        multiplied = {item.parameter for item in self.multiplications}
        return multiplied | self.other_uses.keys() | self.given | self.unseen

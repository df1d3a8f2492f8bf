"""Parameters that no operator was seen to read: do they reach an output all the same?

What goes through NumPy, or into a library of its own, the dispatcher does not see. So the example
is run once more with other values in all of these parameters together: a model whose output is the
same, bit for bit, does not use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from st3fx.core.inputs import Example
from st3fx.core.kinds import is_dense
from st3fx.core.state import preserved
from st3fx.passes.equality import detached, first_difference
from st3fx.passes.observation import Observation, Run
from st3fx.passes.written import Kept

Outputs: TypeAlias = dict[Run, Any]
"""What the runs of an observation gave, without their history."""


def silent(model: nn.Module, observation: Observation) -> list[str]:
    """Parameters with two dimensions or more that nothing was seen to read."""
    reached = observation.reached()
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and parameter.numel() and parameter.is_floating_point()
        if is_dense(parameter) and not parameter.is_meta and name not in reached
    ]


def unseen(
    model: nn.Module,
    examples: Sequence[Example],
    source: Mapping[str, Tensor],
    outputs: Outputs,
    observation: Observation,
) -> set[str]:
    """Those of the :func:`silent` parameters that change an output.

    Args:
        model: Left as it was.
        examples: Its calls.
        source: Full name of a parameter -> a tensor that has its values and keeps them.
        outputs: What they gave in these calls, from the generators' states of now.
        observation: What was seen.
    """
    names = silent(model, observation)
    found: set[str] = set()
    for run, expected in outputs.items():
        example = examples[run.example]
        if not _changes(model, example, run.training, source, names, expected):
            continue
        # Is the model itself deterministic? If it is not, there is no telling.
        if _changes(model, example, run.training, source, [], expected):
            continue
        found |= {n for n in names if _changes(model, example, run.training, source, [n], expected)}
    return found


def _changes(
    model: nn.Module,
    example: Example,
    training: bool,
    source: Mapping[str, Tensor],
    names: Sequence[str],
    expected: Any,
) -> bool:
    """Whether other values in some parameters give another output, or none."""
    kept = Kept(model, source)
    with preserved(model):
        try:
            with torch.no_grad():
                for name in names:
                    model.get_parameter(name).mul_(-1.5).add_(0.1)
            with torch.set_grad_enabled(training):
                output = detached(example.run(model.train(training)))
        except Exception:  # noqa: BLE001 - whatever a user's forward raises
            return True
        finally:
            kept.set_back()
    return first_difference(expected, output) is not None

"""Observe: run the examples once under a dispatch-level tracker and see what multiplies.

The tracker follows every parameter through views and computations into convolutions and matrix
products. It works on every model that runs, whether or not it can be traced, and says for each
multiplication which module's own forward issued it. It also notes how each module is called, and
which parameters the forward writes to.

Parameters that no operator was seen to read: do they reach an output all the same?

What goes through NumPy, or into a library of its own, the dispatcher does not see. So the example
is run once more with other values in all of these parameters together: a model whose output is the
same, bit for bit, does not use them.

A model on the meta device, which has no values, is observed by shapes alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from st3fx import under_way
from st3fx.errors import InputError
from st3fx.graphs.calls import CallSpec
from st3fx.modules import rnn
from st3fx.modules.state import noted, preserved, replaced
from st3fx.passes.convert.equality import detached, first_difference
from st3fx.passes.convert.observation import Observation, Seen, TrialRun
from st3fx.passes.convert.products import Running
from st3fx.passes.convert.tracker import Tracker
from st3fx.passes.convert.written import ELSEWHERE, Kept, Moves
from st3fx.plan.example import Example
from st3fx.provenance import names_kept
from st3fx.tensors import is_dense

Outputs: TypeAlias = dict[TrialRun, Any]
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


@contextlib.contextmanager
def _watched_calls(
    model: nn.Module, observation: Observation, run: TrialRun, running: Running, moves: Moves
) -> Iterator[None]:
    """Keep what is under way, and note how each module is called and what it moves."""
    plain_linear = F.linear

    def linear(*args: Any, **kwargs: Any) -> Any:
        running.linear += 1
        try:
            return plain_linear(*args, **kwargs)
        finally:
            running.linear -= 1

    def enter(module: nn.Module, name: str, args: Any, kwargs: Any) -> None:
        _note_call(observation, name, module, run, args, kwargs)
        moves.look(module, ELSEWHERE)

    try:
        with (
            names_kept(model, running.modules, enter, moves.look),
            replaced(F, {"linear": linear}),
        ):
            yield
    finally:
        moves.look_at_all()
        observation.add_written(moves.written)


@contextlib.contextmanager
def _handing_out(tracker: Tracker) -> Iterator[None]:
    """Let the tracker know which tensors' memory others get: what they do with it is not seen."""

    def noting(original: Any) -> Any:
        def given(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            tracker.hand_out(tensor)
            return original(tensor, *args, **kwargs)

        return given

    doors = {name: noting(getattr(Tensor, name)) for name in ("numpy", "__dlpack__")}
    with replaced(Tensor, doors):
        yield


@contextlib.contextmanager
def _naming(model: nn.Module, observation: Observation) -> Iterator[None]:
    """Note the parameters that code gets by ``parameters()``, ``get_parameter`` or a state dict."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members, save = nn.Module._named_members, nn.Module._save_to_state_dict
    get = nn.Module.get_parameter

    def note(tensor: Any) -> Any:
        if id(tensor) in names:
            observation.handed.add(names[id(tensor)])
        return tensor

    def named_members(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, tensor in members(module, *args, **kwargs):
            yield name, note(tensor)

    def save_to(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        for parameter in module._parameters.values():
            note(parameter)
        save(module, *args, **kwargs)

    def get_parameter(module: nn.Module, target: str) -> Any:
        return note(get(module, target))

    doors = {
        "_named_members": named_members,
        "_save_to_state_dict": save_to,
        "get_parameter": get_parameter,
    }
    with replaced(nn.Module, doors):
        yield


def _note_call(
    observation: Observation, name: str, module: nn.Module, run: TrialRun, args: Any, kwargs: Any
) -> None:
    known = observation.calls.setdefault(name, [])
    try:
        spec = CallSpec(module, args, kwargs)
    except (TypeError, ValueError):
        return  # the forward itself will complain, or has no signature that could be matched
    if not any(seen.training is module.training and seen.spec == spec for seen in known):
        known.append(Seen(module.training, spec, run))


def observe(
    model: nn.Module, examples: Sequence[Example], source: Mapping[str, Tensor]
) -> Observation:
    """TrialRun each example in train mode, and in eval mode without gradients.

    Args:
        model: Left as it was: parameters, buffers, attributes and random generators are set back.
        examples: Calls as in training.
        source: Full name of a parameter -> a tensor that has its values and keeps them.

    Raises:
        InputError: If the model refuses an example in train mode.
    """
    observation = Observation()
    kept = Kept(model, source)
    outputs: Outputs = {}
    under_way.begin(2 * len(examples))
    for number, example in enumerate(examples):
        for training in (True, False):
            run = TrialRun(number, training)
            try:
                output = _run(model, example, run, observation, kept)
                if silent(model, observation):
                    outputs[run] = detached(output)
            except Exception as error:
                if training:
                    raise InputError(_refusal(model, example, error)) from error
                # Some models take other inputs in eval mode; training is what counts.
            under_way.advance()
    observation.unseen = unseen(model, examples, source, outputs, observation)
    return observation


def observe_shapes(model: nn.Module, examples: Sequence[Example]) -> Observation:
    """Observe a model on the meta device, as :func:`observe` does one with values.

    Raises:
        InputError: If the forward asks for values, or as there.
    """
    on_meta = tuple(example.on_meta() for example in examples)
    with _fakes(model, on_meta) as fakes:
        try:
            return observe(model, fakes, dict(model.named_parameters()))
        except InputError as error:
            if not isinstance(error.__cause__, DataDependentOutputException):
                raise
            raise InputError(
                f"{type(model).__name__} is on the meta device, and its forward branches on values "
                f"({error.__cause__.func}): give it values first, with to_empty() and its weights"
            ) from error


@contextlib.contextmanager
def _fakes(model: nn.Module, examples: tuple[Example, ...]) -> Iterator[tuple[Example, ...]]:
    """Fake tensors in place of all tensors of ``model``, inside; gives the same calls with fakes.

    Libraries ask whether a tensor is fake before they branch on its values; of one that is merely
    on the meta device they would ask for these.
    """
    mode = FakeTensorMode()
    faked: dict[int, Tensor] = {}
    saved = [
        (table, name, tensor)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None
    ]
    for table, name, tensor in saved:
        table[name] = faked.setdefault(id(tensor), mode.from_tensor(tensor))  # type: ignore[assignment]
    try:
        given = tuple(example.changed(mode.from_tensor) for example in examples)
        with rnn.other_lists(model, lambda weight: faked[id(weight)]), mode:
            yield given
    finally:
        for table, name, tensor in saved:
            table[name] = tensor  # type: ignore[assignment]


def _run(
    model: nn.Module, example: Example, run: TrialRun, observation: Observation, kept: Kept
) -> Any:
    observation.left[run] = []
    running = Running([""])
    tracker = Tracker(model, running, run.training)
    tracker.mark_inputs(example)
    moves = Moves(model, tracker.move)
    try:
        with preserved(model), _watched_calls(model, observation, run, running, moves):
            try:
                with (
                    torch.set_grad_enabled(run.training),
                    noted(model.train(run.training)) as left,
                    tracker,
                    _handing_out(tracker),
                    _naming(model, observation),
                ):
                    output = example.run(model)
                tracker.mark_outputs(output)
                observation.left[run] = left
            finally:
                tracker.report(observation)
    finally:
        for name in kept.set_back():
            if name not in observation.written:
                observation.add_written({name: {ELSEWHERE}})
    return output


def _refusal(model: nn.Module, example: Example, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    operator = re.search(r"HigherOrderOperator (\w+)", reason[0])
    if operator is not None:
        return (
            f"{type(model).__name__} calls torch's operator {operator[1]}, whose functions run out "
            "of sight of a conversion: write it as Python code (if, for), or convert the parts "
            "that it does not call"
        )
    hint = ""
    if "more than 1 value per channel" in str(error):
        hint = " (batch norm needs a larger batch here)"
    if example.args and isinstance(example.args[0], Mapping):
        hint = " (the dict is one argument of it: its keys are no arguments' names)"
    if example.args and isinstance(example.args[0], list):
        hint = " (a list is one argument; several calls are a list of st3fx.Call)"
    what = "the example inputs" if example.method == "forward" else f"the call of {example.method}"
    return (
        f"{type(model).__name__} refuses {what} in train mode: "
        f"{type(error).__name__}: {reason[0]}{hint}; give inputs that its forward accepts"
    )

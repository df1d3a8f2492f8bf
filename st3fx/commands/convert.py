"""From a SPEC to a bundle and back: the facade's verbs that touch files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from st3fx.api import convert_with
from st3fx.commands.progress import silent
from st3fx.errors import BundleError, PlanError, SpecError, StateError, describe
from st3fx.files.bundle import Bundle, print_graphs, read_bundle, write_bundle
from st3fx.files.manifest import Recipe, Source
from st3fx.loading.input_spec import parse_inputs
from st3fx.loading.spec import LoadedSpec, load_spec, parse_spec
from st3fx.loading.trust import USER, Permit, remember
from st3fx.loading.weights import load_weights, require_file
from st3fx.methods import from_dict as method_from_dict
from st3fx.modules.marks import change_conversion, conversion_of, found_conversion, is_state
from st3fx.modules.unloaded import complete, give_values, on_meta
from st3fx.passes.convert.stand_in import stand_in
from st3fx.plan.sites import Layout, Site, SparsityPlan
from st3fx.training.folder import RunFolder


@dataclass(frozen=True)
class Converted:
    """A converted model with how it was made.

    Attributes:
        model: What ``st3fx.convert`` gave.
        recipe: What was asked for, with the source file that was found.
    """

    model: nn.Module
    recipe: Recipe

    @property
    def plan(self) -> SparsityPlan:
        """What the conversion does."""
        return _plan(self.model)


def convert_spec(
    recipe: Recipe,
    *,
    weights: str | Path | None = None,
    verify: bool = True,
    progress: Callable[[str], None] | None = None,
    permit: Permit = USER,
) -> Converted:
    """Build the model that a recipe names, and convert it.

    What is run of the user's own code may be run again by what is written of it.

    Args:
        recipe: SPEC, method, inputs, selection, seed. Its ``source`` is looked up, not read.
        weights: A weight file, or weights in shards: loaded first, but into a model on the meta
            device once it is converted.
        verify: Compare the converted model with the original.
        progress: Called with the name of each stage as it begins.
        permit: On whose word the model's own code runs.

    Raises:
        SpecError: When the model cannot be built, the weights do not fit, or inputs are missing.
        TrustError: When data names code that is not trusted.
        St3fxError: As ``st3fx.convert``.
    """
    report = progress or silent
    # Before anything slow, so that a slip in an option does not cost the user a minute.
    method = method_from_dict(recipe.method)
    given = None if recipe.inputs is None else parse_inputs(recipe.inputs, seed=recipe.seed)
    if weights is not None:
        require_file(weights)
    report("load")
    loaded = load_spec(
        recipe.spec,
        seed=recipe.seed,
        with_inputs=given is None,
        num_classes=recipe.num_classes,
        in_channels=recipe.in_channels,
        image_size=recipe.image_size,
        permit=permit,
    )
    inputs = loaded.example_inputs if given is None else given
    if inputs is None:
        raise SpecError(
            f"no example inputs for {recipe.spec}: give --input SHAPE, e.g. --input 1x3x224x224"
            + (f", or define example_inputs() in {loaded.spec.target}" if loaded.source else "")
        )
    unloaded = on_meta(loaded.model)
    if weights is not None and not unloaded:
        load_weights(loaded.model, weights)
    model, _ = convert_with(
        recipe,
        loaded.model,
        inputs,
        method,
        total_steps=recipe.total_steps,
        update_every=recipe.update_every,
        verify=verify,
        # The model was built for this alone: a copy would only cost its memory.
        inplace=True,
        progress=progress,
    )
    if weights is not None and unloaded:  # shapes are all that was needed so far
        report("weights")
        load_weights(model, weights)
        complete(model)
    remember()
    return Converted(model, dataclasses.replace(recipe, source=_source(loaded)))


def save_bundle(
    model: nn.Module, recipe: Recipe, directory: str | Path, *, force: bool = False
) -> Path:
    """Write a converted model, before or after training, as a bundle.

    Args:
        model: What ``convert_spec`` or ``load_bundle`` gave.
        recipe: How: ``convert_spec(...).recipe``, or that of the bundle that it is from.
        directory: The folder to make.
        force: Whether a bundle that is already there is replaced.

    Returns:
        The absolute path of the bundle.

    Raises:
        BundleError: When the folder exists or cannot be written.
    """
    written = write_bundle(
        directory,
        recipe=recipe,
        plan=_plan(model),
        # The parameters themselves: without values nothing else tells that two are one.
        state_dict=model.state_dict(keep_vars=on_meta(model)),
        graph_text=print_graphs(conversion_of(model).islands),
        force=force,
    )
    remember(written)
    return written


def load_bundle(
    directory: str | Path, *, trust: bool = False, model: str | None = None
) -> nn.Module:
    """The converted model of a bundle, bit for bit.

    The model is built again from its SPEC, converted by the recipe and given the bundle's state.
    ``st3fx.Sparsifier(model)`` goes on with its training. Code that the bundle names runs only if
    this user has run it before, as it is now.

    Args:
        directory: The bundle.
        trust: Run what it names in any case, and remember that for this folder.
        model: A SPEC to build the model from, instead of the one that the bundle names.

    Raises:
        BundleError: When the bundle is damaged, edited or newer, or its model was changed since.
        SpecError: When the model cannot be built any more.
        TrustError: When the bundle names code that is not trusted.
    """
    bundle = read_bundle(directory)
    return restored(bundle, trust=trust, model=model, values=not bundle.manifest.absent).model


def restored(
    bundle: Bundle, *, trust: bool = False, model: str | None = None, values: bool = True
) -> Converted:
    """The converted model of a bundle that was read, as :func:`load_bundle` gives it.

    Args:
        bundle: That was read.
        trust: Whether the user trusts what it names.
        model: The SPEC that the user names instead.
        values: Whether its weights must have values.

    Raises:
        St3fxError: As :func:`load_bundle`.
    """
    if values:
        bundle.require_weights()
    recipe, permit = code_of(bundle, trust=trust, model=model)
    try:
        converted = convert_spec(recipe, verify=False, permit=permit)
        if bundle.manifest.plan.verified and not _same_islands(converted, bundle):
            # Verification had dropped a graph that computes something else; it must do so again.
            converted = convert_spec(recipe, permit=permit)
    except PlanError as error:
        raise BundleError(f"{_changed(bundle)}: {error}") from error
    now = converted.recipe.source
    if recipe.source and (now is None or now.sha256 != recipe.source.sha256):
        raise BundleError(f"{_changed(bundle)}: {recipe.spec} is another file than it was")
    if not _same_sites(converted.plan.sites, bundle.manifest.plan.sites):
        raise BundleError(f"{_changed(bundle)}: it has other sites than the bundle's plan")
    _take_state(converted.model, bundle)
    plan = dataclasses.replace(bundle.manifest.plan, sites=converted.plan.sites)
    change_conversion(converted.model, plan=plan)  # with what verification said
    return converted


def _take_state(model: nn.Module, bundle: Bundle) -> None:
    """Give a model that was converted again the state of the bundle.

    Raises:
        BundleError: When it does not fit.
    """
    state = bundle.state_dict
    _cast_like(model, state)
    unloaded = on_meta(model)
    if bundle.manifest.absent and not unloaded:
        raise BundleError(
            f"{_changed(bundle)}: it was on the meta device, and has values now: convert it again"
        )
    try:
        if unloaded and not bundle.manifest.absent:
            own = model.state_dict()
            fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
            give_values(model, ((k, v) for k, v in fitting.items() if not is_state(k)))
            complete(model)
        if bundle.manifest.absent:  # of the method's tensors there is nothing to load yet
            state = {k: v for k, v in state.items() if not (is_state(k) and v.is_meta)}
        model.load_state_dict(state, strict=True)
    except (RuntimeError, StateError) as error:
        raise BundleError(f"{_changed(bundle)}: {describe(error)}") from error


def stood_in(bundle: Bundle) -> nn.Module:
    """The converted model of a bundle without its class: for all that does not run it.

    Raises:
        BundleError: When plan and state do not fit, or the bundle has no weights.
    """
    bundle.require_weights()
    recipe = bundle.manifest.recipe
    try:
        return stand_in(
            bundle.manifest.plan,
            method_from_dict(recipe.method),
            bundle.state_dict,
            total_steps=recipe.total_steps,
            update_every=recipe.update_every,
            pin=recipe.keep_zeros,
        )
    except StateError as error:
        raise BundleError(f"{bundle.directory} does not fit together: {error}") from error


def code_of(bundle: Bundle, *, trust: bool, model: str | None) -> tuple[Recipe, Permit]:
    """The recipe of a bundle with a SPEC that leads to the model's code, and on whose word it runs.

    Args:
        bundle: That was read.
        trust: Whether the user trusts what it names.
        model: The SPEC that the user names instead.

    Raises:
        BundleError: When the code is missing, or was changed since.
    """
    recipe = bundle.manifest.recipe
    if model is not None:
        return dataclasses.replace(recipe, spec=model, source=None), USER
    bundle.check_source()
    run = RunFolder(bundle.directory.parent)
    is_of_run = run.bundle == bundle.directory and run.settings.is_file()
    return located(recipe), Permit(run.path if is_of_run else bundle.directory, trust)


def _plan(model: nn.Module) -> SparsityPlan:
    conversion = found_conversion(model)
    if conversion is None:
        raise BundleError(f"{type(model).__name__} is not converted: call st3fx.convert first")
    return conversion.plan


def _source(loaded: LoadedSpec) -> Source | None:
    if loaded.source is None or loaded.sha256 is None:
        return None
    return Source(loaded.source, loaded.sha256)


def located(recipe: Recipe) -> Recipe:
    """A recipe with a SPEC that leads to its source file from any working directory."""
    spec = parse_spec(recipe.spec)
    if spec.kind != "file" or recipe.source is None:
        return recipe
    return dataclasses.replace(
        recipe, spec=str(dataclasses.replace(spec, target=str(recipe.source.path)))
    )


def _same_sites(now: Sequence[Site], then: Sequence[Site]) -> bool:
    """Whether the sites are those of the bundle.

    A linear layer with one output was once called a matmul without output channels.
    """
    alike = [
        dataclasses.replace(old, op=new.op, layout=new.layout)
        if (old.op, old.layout, new.shape[0]) == ("matmul", Layout(()), 1)
        else old
        for new, old in zip(now, then, strict=False)
    ]
    return len(now) == len(then) and list(now) == alike


def _same_islands(converted: Converted, bundle: Bundle) -> bool:
    now, then = converted.plan.islands, bundle.manifest.plan.islands
    return [(i.name, i.modes) for i in now] == [(i.name, i.modes) for i in then]


def _cast_like(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the dtypes that they have in ``state``: loading alone casts."""
    for key, value in model.state_dict(keep_vars=True).items():
        if key in state and value.dtype != state[key].dtype:
            value.data = value.data.to(state[key].dtype)


def _changed(bundle: Bundle) -> str:
    return f"the model of {bundle.directory} was changed since the bundle was written"

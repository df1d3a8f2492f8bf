"""What was found in a file or folder, as a person reads it: one screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from st3fx.cli.views.plan import skipped_lines
from st3fx.cli.views.tables import console, make_grid, make_table
from st3fx.cli.views.words import percent, shape_text, size_text
from st3fx.errors import few
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.inspection.found import Found, Layer, Port

_NUMBERS = ("shape", "weights", "zeros")


def print_found(found: Found, top: int | None) -> None:
    """Facts, layers, what can be done next.

    Args:
        found: What it is.
        top: How many layers are listed, those with most weights; ``None`` for all of everything.
    """
    out = console()
    out.print(Text(found.path, style="bold"), soft_wrap=True)
    out.print(make_grid(_facts(found, top)))
    if found.layers and top != 0:
        out.print()
        out.print(_layers(found, top))
    elif found.layers:
        out.print()
    for note in found.notes:
        out.print(Text(note))
    if found.steps:
        out.print(Text("next"))
        width = max(len(step.command) for step in found.steps)
        beside = width + max(len(step.does) for step in found.steps) + 4 <= out.width
        for step in found.steps:
            gap = " " * (width - len(step.command) + 2) if beside else "\n      "
            out.print(Text(f"  {step.command}{gap}{step.does}"), soft_wrap=True)


def _facts(found: Found, top: int | None) -> Iterator[tuple[str, str]]:
    """A name and what stands beside it; what is not known has no line."""
    versions = ", ".join(f"{name} {version}".strip() for name, version in found.versions.items())
    whole = f"{found.kind} ({found.format}), {size_text(found.bytes)}"
    scores = ", ".join(f"{name} {percent(value)}" for name, value in found.scores.items())
    opsets = ", ".join(f"{name} {version}" for name, version in found.opsets.items())
    kernels = ", ".join(f"{count} {name}" for name, count in found.kernels.items())
    settings = ", ".join(f"{key}={value}" for key, value in found.settings.items())
    rows = (
        ("kind", whole),
        ("written by", versions),
        ("model", found.model),
        ("method", found.method),
        ("settings", settings if top is None else ""),
        ("sparsity", _sparsity(found)),
        ("training", _training(found)),
        ("scores", scores),
        ("weights", _weights(found)),
        ("skipped", "\n".join(skipped_lines(found.skipped, whole=top is None))),
        ("opsets", opsets),
        ("inputs", _ports(found.inputs, top)),
        ("outputs", _ports(found.outputs, top)),
        ("kernels", kernels),
        ("files", _files(found)),
        ("digests", _digests(found)),
    )
    yield from ((name, text) for name, text in rows if text)


def _sparsity(found: Found) -> str:
    reached = "" if found.reached is None else f"{found.reached:.2%} of its weights are zero"
    if found.target is None:
        return reached
    return (
        f"{reached or 'not known'}, of {found.target:.4g} that it is trained to"
        if (found.target)
        else reached
    )


def _training(found: Found) -> str:
    parts = [found.progress]
    if found.step is not None:
        of = f" of {found.total_steps:,}" if found.total_steps else ""
        parts.append(f"step {found.step:,}{of}")
    return ", ".join(part for part in parts if part)


def _weights(found: Found) -> str:
    count = sum(layer.elements for layer in found.layers)
    of = "" if found.parameters is None else f" of {found.parameters:,} parameters"
    noun = "site" if found.sites is not None else "layer"
    many = plural(len(found.layers) if found.sites is None else found.sites, noun)
    return f"{many} with {count:,}{of}" if found.layers or found.sites is not None else of[4:]


def _ports(ports: tuple[Port, ...], top: int | None) -> str:
    shown = ports if top is None else ports[:_PORTS]
    lines = [f"{port.name} {port.dtype} {shape_text(port.shape)}" for port in shown]
    more = len(ports) - len(shown)
    return "\n".join([*lines, *([f"and {more} more (--all)"] if more else [])])


_PORTS = 3
"""Inputs or outputs that are listed."""


def _files(found: Found) -> str:
    parts = (f"{name} {size_text(size)}" for name, size in found.files.items())
    return few(parts, limit=6) if found.files else ""  # of hundreds of shards the JSON has them all


def _digests(found: Found) -> str:
    if not found.digests:
        return "none: nothing in it says whether it is as it was written"
    whole = [digest.what for digest in found.digests if digest.holds and not digest.said]
    lines = [f"hold: {', '.join(whole)}"] if whole else []
    return "\n".join([*lines, *(f"{d.what} {d.said}" for d in found.digests if d.said)])


def _layers(found: Found, top: int | None) -> object:
    chosen = found.layers
    if top is not None and len(chosen) > top:
        largest = sorted(range(len(chosen)), key=lambda i: (-chosen[i].elements, i))[:top]
        chosen = tuple(chosen[i] for i in sorted(largest))
    kernels = any(layer.kernel for layer in chosen)
    columns = ("layer", *_NUMBERS, *(("operator",) if kernels else ()))
    rows = [_cells(layer)[: len(columns)] for layer in chosen]
    title = None
    if len(chosen) < len(found.layers):
        title = f"the {len(chosen)} largest of {len(found.layers)} layers; --all lists all"
    return make_table(columns, rows, numbers=_NUMBERS, whole=_NUMBERS, title=title)


def _cells(layer: Layer) -> tuple[str, ...]:
    share = "?" if layer.zeros is None else f"{layer.zeros / max(1, layer.elements):.1%}"
    name = layer.name.removesuffix(".weight")
    return (name, shape_text(layer.shape), f"{layer.elements:,}", share, layer.kernel)

"""Prepares an ONNX file for calls by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from st3fx.bench.variant import Array, Mark, Prepared, locate
from st3fx.errors import BenchError

PREPARE = f"{__name__}:prepare"

CONFIG = {
    "session.set_denormal_as_zero": "1",  # a model must not be slow for numbers that mean nothing
    "session.intra_op.allow_spinning": "1",  # as by default, while a call runs
    "session.force_spinning_stop": "1",  # an idle pool would tax whoever runs next
}
"""Entries of the session's configuration that the times depend on."""

_SILENT = 4


def prepare(
    inputs: Sequence[Array],
    threads: int,
    mark: Mark,
    *,
    path: str,
    providers: Sequence[str],
    custom_ops: str | None = None,
    session: str | None = None,
) -> Prepared:
    """Open a file and bind inputs to it, in their order.

    Args:
        inputs: Values.
        threads: Of the intra-op pool.
        mark: Called before the file is opened.
        path: The file.
        providers: In order.
        custom_ops: A library with operators to register.
        session: ``module:function`` that opens the session instead, called as
            ``function(path, threads=threads)``; it sets its own providers and configuration.
    """
    import onnxruntime  # noqa: PLC0415

    if session is None:
        options = session_options(threads, custom_ops)
        mark()
        opened = onnxruntime.InferenceSession(path, options, providers=list(providers))
    else:
        opener = locate(session)
        mark()
        opened = opener(path, threads=threads)
    used = opened.get_providers()
    if session is None and used[0] != providers[0]:
        raise BenchError(
            f"ONNX Runtime cannot use {providers[0]} on this machine and took {used[0]}: look into "
            "its installation, or choose another by --provider"
        )
    ports = opened.get_inputs()
    feeds = {port.name: array for port, array in zip(ports, inputs, strict=True)}
    return Prepared(
        lambda: opened.run(None, feeds), f"onnxruntime {onnxruntime.__version__}", used[0]
    )


def session_options(threads: int, custom_ops: str | None = None) -> Any:
    """Options of a session as a benchmark needs it."""
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for key, value in CONFIG.items():
        options.add_session_config_entry(key, value)
    if custom_ops is not None:
        options.register_custom_ops_library(custom_ops)
    return options


def known_providers(names: Sequence[str]) -> tuple[str, ...]:
    """Full names of providers, which may be given as ``cpu`` or ``cuda``.

    Raises:
        BenchError: For one that this ONNX Runtime does not have.
    """
    import onnxruntime  # noqa: PLC0415

    there = {_short(name): name for name in onnxruntime.get_available_providers()}
    for name in names:
        if _short(name) not in there:
            raise BenchError(
                f"provider {name!r} is not in this ONNX Runtime: choose from "
                f"{', '.join(there.values())}"
            )
    return tuple(there[_short(name)] for name in names)


def _short(name: str) -> str:
    return name.lower().removesuffix("executionprovider")

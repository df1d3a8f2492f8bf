"""Probes of what is optional: packages and data that some SPECs and options need."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

from st3fx.doctor.probe import AbsentError


def timm() -> str:
    """Models of ``timm:NAME``."""
    return _package("timm")


def transformers() -> str:
    """Models of users who import it."""
    return _package("transformers")


def fashion_mnist() -> str:
    """The full set, where Debian and Ubuntu put it."""
    from st3fx.data.base import DataSettings
    from st3fx.data.fashion_mnist import DEBIAN, fashion_mnist

    if not DEBIAN.exists():
        raise AbsentError(f"not in {DEBIAN}", "apt install dataset-fashion-mnist")
    data = fashion_mnist(DataSettings(name="fashion-mnist"))
    return f"{len(data.train.dataset):,} training images in {DEBIAN}"  # type: ignore[arg-type]


def _package(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        raise AbsentError("not installed", f"pip install {name}")
    importlib.import_module(name)
    return importlib.metadata.version(name)

"""Whose code a file is."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
import torch

import st3fx
from st3fx import models
from st3fx.passes.trace import trace
from st3fx.whose import is_compilers, is_installed, is_torchs, is_users

LIBRARY = str(Path(sysconfig.get_path("purelib")) / "timm" / "layers.py")
EXPORTER = str(Path(sysconfig.get_path("purelib")) / "onnx_ir" / "_core.py")
MODELS = str(models.__file__)


@pytest.mark.parametrize(
    ("file", "torchs", "compilers", "installed", "users"),
    [
        (str(torch.nn.functional.__file__), True, False, None, False),
        (str(trace.__file__), False, True, None, False),
        (MODELS, False, False, None, False),
        (str(json.__file__), False, False, False, False),
        (LIBRARY, False, False, True, True),
        (EXPORTER, False, False, True, False),
        ("/home/somebody/model.py", False, False, False, True),
        ("<string>", False, False, False, False),
    ],
)
def test_whose_a_file_is(
    file: str, torchs: bool, compilers: bool, installed: bool | None, users: bool
) -> None:
    assert is_torchs(file) == torchs
    assert is_compilers(file) == compilers
    if installed is not None:  # torch and st3fx may be installed or lie in a tree
        assert is_installed(file) == installed
    assert is_users(file, ("onnx_ir",)) == users


def test_the_folders_of_the_compiler_exist() -> None:
    for name in ("passes", "graphs", "modules", "sparsity"):
        assert is_compilers(str(Path(str(st3fx.__file__)).parent / name / "__init__.py"))
        assert (Path(str(st3fx.__file__)).parent / name).is_dir()

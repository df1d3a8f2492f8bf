"""``import st3fx`` gives every public name, and imports none of them before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import st3fx
from st3fx import public

PACKAGE = Path(st3fx.__file__).parent


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_every_public_name_is_there() -> None:
    assert getattr(st3fx, "__all__") == public.__all__  # noqa: B009 (dynamic: not known to mypy)
    for name in public.__all__:
        assert getattr(st3fx, name) is getattr(public, name)
    assert set(public.__all__) <= set(dir(st3fx))


def test_no_public_name_hides_a_submodule() -> None:
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(public.__all__)


@pytest.mark.parametrize("name", ["nonsense", "__wrapped__"])
def test_another_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'st3fx' has no attribute '{name}'"):
        getattr(st3fx, name)


def test_importing_it_leaves_torch_alone() -> None:
    code = "import sys, st3fx; print('torch' in sys.modules, st3fx.__version__)"
    assert _python(code) == f"False {st3fx.__version__}\n"


def test_a_submodule_is_an_attribute_and_loads_nothing_else() -> None:
    code = "import sys, st3fx; print(st3fx.errors.__name__, 'torch' in sys.modules)"
    assert _python(code) == "st3fx.errors False\n"


@pytest.mark.slow
def test_a_star_import_has_them_all() -> None:
    assert _python("from st3fx import *; print(convert.__module__)") == "st3fx.api\n"


@pytest.mark.slow
def test_the_operators_come_with_the_methods() -> None:
    code = "import torch, st3fx.methods; print(torch.ops.st3fx.soft_threshold.default)"
    assert _python(code) == "st3fx.soft_threshold.default\n"

"""The house rules: every package is installed, and imports point only down."""

from __future__ import annotations

import ast
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = ("core", "passes", "engines", "api", "cli")
"""From the bottom up. A module imports from its own layer and those below."""

LAYER_OF = {
    "errors": "core", "version": "core", "core": "core", "gpu": "core", "methods": "core",
    "native": "core", "passes": "passes", "verbs": "api", "api": "api", "public": "api",
    "doctor": "api", "cli": "cli", "__main__": "cli",
}  # fmt: skip
"""By what follows ``st3fx.``; everything else is an engine."""

ONLY_IN = {
    "onnx": {"engines"},
    "onnx_ir": {"engines"},
    "onnxruntime": {"engines"},
    "onnxscript": {"engines"},
    "click": {"cli"},
    "rich": {"cli"},
}
"""Packages that a single layer may use."""

CORE_MAY_USE = {*sys.stdlib_module_names, "numpy", "torch", "triton"}


def layer(module: str) -> str:
    """The layer of a module of ours."""
    parts = module.split(".")
    # st3fx itself is the facade.
    return "api" if len(parts) == 1 else LAYER_OF.get(parts[1], "engines")


def modules(root: Path) -> dict[str, str]:
    """Module name -> source, for all of ours; links are not followed."""
    found = {}
    for folder, package in (("st3fx", "st3fx"), ("passes", "st3fx.passes"), ("cli", "st3fx.cli")):
        for parent, _, files in os.walk(root / folder):
            for file in files:
                if file.endswith(".py"):
                    path = Path(parent) / file
                    parts = path.relative_to(root / folder).with_suffix("").parts
                    name = ".".join((package, *parts)).removesuffix(".__init__")
                    found[name] = path.read_text(encoding="utf-8")
    return found


def imports(source: str, known: set[str]) -> Iterator[str]:
    """Full names of the modules that ``source`` imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are banned"
            for alias in node.names:
                # `from st3fx import sites` imports the module, not a name of the facade.
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def violations(sources: dict[str, str]) -> list[str]:
    """What breaks the rules, one line each."""
    found = []
    for module, source in sources.items():
        own = layer(module)
        for target in imports(source, set(sources)):
            top = target.partition(".")[0]
            if top == "st3fx":
                # A subpackage's __init__ is not the facade, though the facade's comes first.
                if LAYERS.index(layer(target)) > LAYERS.index(own):
                    found.append(f"{module} ({own}) imports {target} ({layer(target)})")
            elif own not in ONLY_IN.get(top, {own}):
                found.append(f"{module} ({own}) imports {top}")
            elif own == "core" and top not in CORE_MAY_USE:
                found.append(f"{module} (core) imports {top}, which is neither stdlib nor torch")
    return found


def packages(root: Path) -> dict[str, Path]:
    """Package name -> folder, as they lie in the tree."""
    found = {}
    for folder, package in (("st3fx", "st3fx"), ("passes", "st3fx.passes"), ("cli", "st3fx.cli")):
        for path in (root / folder).rglob("__init__.py"):
            inner = path.parent.relative_to(root / folder)
            # rglob may follow the links st3fx/passes and st3fx/cli, which are listed on their own.
            if not any((root / folder / part).is_symlink() for part in inner.parts[:1]):
                found[".".join((package, *inner.parts))] = path.parent
    return found


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = packages(ROOT)
    assert sorted(settings["packages"]) == sorted(found)
    for name, folder in settings["package-dir"].items():
        assert found[name] == ROOT / folder


@pytest.mark.parametrize("name", ["passes", "cli"])
def test_links_make_the_tree_importable(name: str) -> None:
    link = ROOT / "st3fx" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"  # noqa: PTH115 (the text, which must be relative)


def test_imports_point_down() -> None:
    sources = modules(ROOT)
    assert {layer(module) for module in sources} == set(LAYERS)
    assert violations(sources) == []


def test_placed_modules_exist() -> None:
    names = {name.removeprefix("st3fx.") for name in modules(ROOT)}
    assert names >= set(LAYER_OF)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        (
            "st3fx.core.sites",
            "import st3fx.passes.trace",
            "(core) imports st3fx.passes.trace (passes)",
        ),
        (
            "st3fx.core.sites",
            "from st3fx.files import bundle",
            "(core) imports st3fx.files.bundle (engines)",
        ),
        ("st3fx.core.sites", "def f():\n    import networkx", "imports networkx, which is neither"),
        ("st3fx.methods.st3", "from st3fx import convert", "(core) imports st3fx (api)"),
        (
            "st3fx.passes.x",
            "from st3fx.files.bundle import y",
            "(passes) imports st3fx.files.bundle (engines)",
        ),
        ("st3fx.passes.x", "import onnx.helper", "(passes) imports onnx"),
        ("st3fx.files.bundle", "from st3fx.api import fold", "(engines) imports st3fx.api (api)"),
        ("st3fx.files.bundle", "import rich", "(engines) imports rich"),
        ("st3fx.api", "from st3fx.cli import main", "(api) imports st3fx.cli (cli)"),
        ("st3fx.cli.x", "import onnxruntime as ort", "(cli) imports onnxruntime"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, complaint: str) -> None:
    found = violations({"st3fx.files.bundle": "", module: source})
    assert len(found) == 1
    assert complaint in found[0]


def test_right_imports_pass() -> None:
    sources = {
        "st3fx.core.sites": "import json, torch\nfrom st3fx import errors",
        "st3fx.errors": "",
        "st3fx.passes.x": "import networkx\nfrom st3fx.core.sites import Site",
        "st3fx.export": "import onnx\nfrom st3fx.passes.x import y",
        "st3fx.cli.x": "import click, rich.table\nimport st3fx",
    }
    assert violations(sources) == []


def test_continuous_integration_finds_the_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    marker = readme.index("<!-- test command -->")
    assert readme[marker + 2] == 'pip install -e ".[test]" && pytest'
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

"""The house rules: every package is installed, and imports point strictly down."""

from __future__ import annotations

import ast
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent

PACKAGES = (
    # What a converted model is.
    "errors", "version", "whose", "under_way", "processes", "process_lock", "tensors", "provenance",
    "plan", "native", "sparsity.gpu", "sparsity", "sparsity.threshold", "methods", "modules",
    "graphs", "sparsifier",
    # The compiler.
    "passes", "passes.trace", "passes.convert", "passes.channels",
    # What is made of models, measured and trained.
    "files", "runtime", "passes.onnx", "passes.onnx.sparse_kernels",
    "passes.onnx.quant_kernels", "export", "quantization", "flops", "bench",
    "models", "loading", "data", "training", "inspection", "report",
    # What users call.
    "api", "integrations", "commands", "public", "", "doctor", "cli.views", "cli", "__main__",
)  # fmt: skip
"""All packages below ``st3fx``, from the bottom up; ``""`` is the facade itself.

A module imports from its own package and from those before it, for types too.
"""

DOORS = ("passes.trace",)
"""Packages of which others import no module, but what the package itself names."""

CORE = PACKAGES[: PACKAGES.index("passes")]

ONLY_IN = {
    "onnx": {
        "runtime",
        "passes.onnx.sparse_kernels",
        "passes.onnx.quant_kernels",
        "passes.onnx",
        "export",
        "quantization",
        "flops",
        "bench",
        "inspection",
    },
    "onnx_ir": {
        "passes.onnx.sparse_kernels",
        "passes.onnx.quant_kernels",
        "passes.onnx",
        "export",
        "quantization",
        "runtime",
    },
    "onnxruntime": {
        "runtime",
        "passes.onnx.quant_kernels",
        "passes.onnx",
        "export",
        "quantization",
        "flops",
        "bench",
    },
    "onnxscript": {"passes.onnx", "export"},
    "click": {"cli"},
    "datasets": {"data"},
    "pyarrow": {"data"},
    "lightning": {"integrations"},
    "peft": {"integrations"},
    "transformers": {"integrations"},
    "ultralytics": {"integrations"},
    "rich": {"cli", "cli.views"},
}
"""Libraries that few packages may use."""

CORE_MAY_USE = {*sys.stdlib_module_names, "numpy", "torch", "triton"}


def package(module: str) -> str:
    """The package of a module of ours; a module beside the packages is one of its own.

    Raises:
        LookupError: If it is in no list.
    """
    name = module.removeprefix("st3fx").lstrip(".")
    if name not in PACKAGES:
        name = name.rpartition(".")[0]
    if name not in PACKAGES or (name == "" and module != "st3fx"):
        raise LookupError(f"{module} is in no package of the list")
    return name


def modules(root: Path) -> dict[str, str]:
    """Module name -> source, for all of ours; links are not followed."""
    found = {}
    for folder, top in (("st3fx", "st3fx"), ("passes", "st3fx.passes"), ("cli", "st3fx.cli")):
        for parent, _, files in os.walk(root / folder):
            for file in files:
                if file.endswith(".py"):
                    path = Path(parent) / file
                    parts = path.relative_to(root / folder).with_suffix("").parts
                    name = ".".join((top, *parts)).removesuffix(".__init__")
                    found[name] = path.read_text(encoding="utf-8")
    return found


def imports(source: str, known: set[str]) -> Iterator[str]:
    """Full names of the modules that ``source`` imports, wherever in it, for types too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are banned"
            for alias in node.names:
                # `from st3fx import tensors` imports the module, not a name of the facade.
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def violations(sources: dict[str, str]) -> list[str]:
    """What breaks the rules, one line each."""
    found = []
    for module, source in sources.items():
        own = package(module)
        for target in imports(source, set(sources)):
            top = target.partition(".")[0]
            if top == "st3fx":
                if PACKAGES.index(package(target)) > PACKAGES.index(own):
                    found.append(f"{module} imports {target}, which is above it")
                elif own != package(target) in DOORS and target != f"st3fx.{package(target)}":
                    found.append(f"{module} imports {target}, which is behind a door")
            elif own not in ONLY_IN.get(top, {own}):
                found.append(f"{module} imports {top}")
            elif own in CORE and top not in CORE_MAY_USE:
                found.append(f"{module} imports {top}, which is neither stdlib nor torch")
    return found


def circles(sources: dict[str, str]) -> list[list[str]]:
    """Modules that need each other."""
    graph = nx.DiGraph(
        (module, target)
        for module, source in sources.items()
        for target in imports(source, set(sources))
        if target in sources and target != module
    )
    return [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]


def packages(root: Path) -> dict[str, Path]:
    """Package name -> folder, as they lie in the tree."""
    found = {}
    for folder, top in (("st3fx", "st3fx"), ("passes", "st3fx.passes"), ("cli", "st3fx.cli")):
        for path in (root / folder).rglob("__init__.py"):
            inner = path.parent.relative_to(root / folder)
            # rglob may follow the links st3fx/passes and st3fx/cli, which are listed on their own.
            if not any((root / folder / part).is_symlink() for part in inner.parts[:1]):
                found[".".join((top, *inner.parts))] = path.parent
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
    assert violations(modules(ROOT)) == []


def test_no_two_modules_need_each_other() -> None:
    assert circles(modules(ROOT)) == []


def test_listed_packages_exist() -> None:
    assert {package(module) for module in modules(ROOT)} == set(PACKAGES)


def test_files_and_functions_keep_to_a_size() -> None:
    for name, source in modules(ROOT).items():
        assert source.count("\n") <= 600, name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is None:
                assert (node.end_lineno or 0) - node.lineno < 60, f"{name}.{node.name}"


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("st3fx.plan.sites", "import st3fx.passes.trace", "imports st3fx.passes.trace, which is"),
        ("st3fx.plan.sites", "from st3fx.files import bundle", "st3fx.files.bundle, which is"),
        ("st3fx.plan.sites", "def f():\n    import networkx", "imports networkx, which is neither"),
        ("st3fx.modules.x", "from st3fx.graphs import y", "imports st3fx.graphs, which is above"),
        (
            "st3fx.modules.x",
            "if TYPE_CHECKING:\n    from st3fx.sparsifier.run import Run",
            "imports st3fx.sparsifier.run, which is above",
        ),
        ("st3fx.methods.st3", "from st3fx import convert", "imports st3fx, which is"),
        ("st3fx.passes.trace.x", "from st3fx.passes.convert import y", "passes.convert, which is"),
        ("st3fx.passes.trace.x", "import onnx.helper", "imports onnx"),
        (
            "st3fx.passes.convert.x",
            "import st3fx.passes.trace.reads",
            "reads, which is behind a door",
        ),
        ("st3fx.files.bundle", "from st3fx.api import fold", "imports st3fx.api, which is above"),
        ("st3fx.files.bundle", "import rich", "imports rich"),
        ("st3fx.api", "from st3fx.cli import main", "imports st3fx.cli, which is above it"),
        ("st3fx.cli.x", "import onnxruntime as ort", "imports onnxruntime"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, complaint: str) -> None:
    found = violations({"st3fx.files.bundle": "", module: source})
    assert len(found) == 1
    assert complaint in found[0]


def test_an_unknown_package_is_found() -> None:
    with pytest.raises(LookupError, match=r"st3fx.stray.x is in no package"):
        violations({"st3fx.stray.x": ""})
    with pytest.raises(LookupError, match=r"st3fx.stray is in no package"):
        violations({"st3fx.stray": ""})


def test_a_circle_is_found() -> None:
    sources = {
        "st3fx.plan.a": "from st3fx.plan import b",
        "st3fx.plan.b": "if TYPE_CHECKING:\n    from st3fx.plan.a import x",
        "st3fx.plan.c": "from st3fx.plan.a import x",
    }
    assert circles(sources) == [["st3fx.plan.a", "st3fx.plan.b"]]


def test_right_imports_pass() -> None:
    sources = {
        "st3fx.plan.sites": "import json, torch\nfrom st3fx import errors",
        "st3fx.errors": "",
        "st3fx.passes.convert.x": "import networkx\nfrom st3fx.plan.sites import Site",
        "st3fx.export": "import onnx\nfrom st3fx.passes.convert.x import y",
        "st3fx.cli.x": "import click, rich.table\nimport st3fx",
    }
    assert violations(sources) == []


def test_continuous_integration_finds_the_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    marker = readme.index("<!-- test command -->")
    assert readme[marker + 2] == 'pip install -e ".[test]" && pytest'
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from st3fx.errors import SpecError
from st3fx.loading.spec import Spec, load_spec, parse_spec
from tests.models import TINY, write


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A working directory of its own; imports that a test adds are taken back."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and origin.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "spec", "name"),
    [
        ("model.py", Spec("file", "model.py"), "model"),
        ("a/b.py:make", Spec("file", "a/b.py", "make"), "b-make"),
        ("b.py:Net.small", Spec("file", "b.py", "Net.small"), "b-Net.small"),
        ("torchvision:resnet50", Spec("torchvision", "resnet50"), "resnet50"),
        ("st3fx:resnet-20", Spec("st3fx", "resnet-20"), "resnet-20"),
        ("timm:hf-hub:a/b", Spec("timm", "hf-hub:a/b"), "hf-hub-a-b"),
        ("pkg.mod:make", Spec("module", "pkg.mod", "make"), "pkg.mod-make"),
    ],
)
def test_parse(text: str, spec: Spec, name: str) -> None:
    assert parse_spec(text) == spec
    assert str(spec) == text
    assert spec.name == name


@pytest.mark.parametrize("text", ["resnet50", "", "a.b", "st3fx:", "pkg:", ":make", "pkg.mod:1x"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(SpecError, match=r"is not a SPEC: give model.py, .*:callable"):
        parse_spec(text)


def test_file_with_one_class(tmp_path: Path) -> None:
    path = write(tmp_path, "model.py", TINY)
    loaded = load_spec("model.py")
    assert type(loaded.model).__name__ == "Tiny"
    assert loaded.example_inputs.shape == (2, 3, 8, 8)
    assert loaded.source == path.resolve()
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.py"]
    assert load_spec("model.py", with_inputs=False).example_inputs is None


def test_build_model_comes_first(tmp_path: Path) -> None:
    text = "from torch import nn\nclass A(nn.Module): pass\nclass B(nn.Module): pass\n"
    write(tmp_path, "model.py", text + "def build_model(): return B()\n")
    assert type(load_spec("model.py").model).__name__ == "B"
    assert type(load_spec("model.py:A").model).__name__ == "A"


def test_class_with_required_arguments_is_not_a_candidate(tmp_path: Path) -> None:
    text = """
        from torch import nn
        class Block(nn.Module):
            def __init__(self, width): super().__init__()
        class Net(nn.Module):
            def __init__(self, width=3, *args, **more): super().__init__()
        NET = Net()
    """
    write(tmp_path, "model.py", text)
    assert type(load_spec("model.py").model).__name__ == "Net"
    assert load_spec("model.py:NET").model is load_spec("model.py:NET").model


def test_same_seed_same_weights_and_generators_untouched(tmp_path: Path) -> None:
    write(tmp_path, "model.py", TINY)
    before, python_before = torch.get_rng_state(), random.getstate()
    first, again, other = (load_spec("model.py", seed=s).model.state_dict() for s in (1, 1, 2))
    assert torch.equal(first["conv.weight"], again["conv.weight"])
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before


def test_two_projects_with_neighbours_of_the_same_name(tmp_path: Path) -> None:
    for name, width in (("one", 3), ("two", 7)):
        folder = tmp_path / name
        write(folder, "layers.py", f"WIDTH = {width}\n")
        write(folder, "parts/__init__.py", "")
        write(folder, "parts/depth.py", f"DEPTH = {width}\n")
        text = """
            from torch import nn
            from layers import WIDTH
            def build_model():
                from parts.depth import DEPTH   # late, as in many projects
                return nn.Linear(WIDTH, DEPTH)
        """
        write(folder, "model.py", text)
    one, two = load_spec("one/model.py").model, load_spec("two/model.py").model
    again = load_spec("one/model.py").model
    sizes = [m.state_dict()["weight"].shape for m in (one, two, again)]
    assert [tuple(size) for size in sizes] == [(3, 3), (7, 7), (3, 3)]


def test_installed_modules_are_never_forgotten(tmp_path: Path) -> None:
    write(tmp_path, "one/model.py", TINY)
    write(tmp_path, "two/model.py", TINY)
    write(tmp_path, "two/torch.py", "raise RuntimeError\n")
    load_spec("one/model.py")
    load_spec("two/model.py")
    assert sys.modules["torch"] is torch


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, "model.py", "from torch import nn\ndef build_model(): return nn.Linear(2, 3)\n")
    assert load_spec("model.py").model.out_features == 3
    write(tmp_path, "model.py", "from torch import nn\ndef build_model(): return nn.Linear(2, 9)\n")
    assert load_spec("model.py").model.out_features == 9


def test_module_in_the_working_directory(tmp_path: Path) -> None:
    path = write(tmp_path, "st3fx_test_pkg/nets.py", TINY + "\n")
    loaded = load_spec("st3fx_test_pkg.nets:Tiny")
    assert type(loaded.model).__name__ == "Tiny"
    assert loaded.source == path.resolve()
    assert loaded.example_inputs is not None


def test_torchvision() -> None:
    loaded = load_spec("torchvision:squeezenet1_1")
    assert type(loaded.model).__name__ == "SqueezeNet"
    assert (loaded.source, loaded.sha256, loaded.example_inputs) == (None, None, None)


def test_torchvision_backbone_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", refuse)
    assert isinstance(load_spec("torchvision:lraspp_mobilenet_v3_large").model, nn.Module)


@pytest.mark.parametrize(
    ("settings", "shape", "classes"),
    [
        ({}, (2, 3, 32, 32), 10),
        ({"in_channels": 1, "image_size": 28, "num_classes": 4}, (2, 1, 28, 28), 4),
    ],
)
def test_reference_model(settings: dict[str, Any], shape: tuple[int, ...], classes: int) -> None:
    loaded = load_spec("st3fx:resnet20", **settings)
    assert loaded.example_inputs.shape == shape
    assert loaded.model(loaded.example_inputs).shape == (2, classes)
    again = load_spec("st3fx:resnet20", **settings, with_inputs=False)
    assert again.example_inputs is None
    weights = dict(again.model.named_parameters())
    assert all(torch.equal(p, weights[key]) for key, p in loaded.model.named_parameters())


def test_reference_model_of_one_image_size() -> None:
    assert load_spec("st3fx:lstm-rows").example_inputs.shape == (2, 1, 28, 28)
    loaded = load_spec("st3fx:lenet_300_100", in_channels=3, image_size=32)
    assert loaded.example_inputs.shape == (2, 3, 32, 32)
    assert loaded.model(loaded.example_inputs).shape == (2, 10)


def test_library_models_for_other_data() -> None:
    model = load_spec("torchvision:squeezenet1_1", num_classes=7, in_channels=3).model
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    model = load_spec("timm:test_resnet", num_classes=7, in_channels=1).model
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    with pytest.raises(SpecError, match=r"squeezenet1_1 takes images of 3 channels, not 1; repeat"):
        load_spec("torchvision:squeezenet1_1", in_channels=1)
    with pytest.raises(SpecError, match=r"cannot build 'raft_small': TypeError.*num_classes"):
        load_spec("torchvision:raft_small", num_classes=7)


def test_a_users_model_is_not_given_them(tmp_path: Path) -> None:
    text = (
        "from torch import nn\ndef build_model(num_classes=3): return nn.Linear(2, num_classes)\n"
    )
    write(tmp_path, "model.py", text)
    assert load_spec("model.py", num_classes=7, in_channels=1).model.out_features == 3


def test_timm() -> None:
    assert isinstance(load_spec("timm:test_resnet").model, nn.Module)
    with pytest.raises(SpecError, match=r"timm has no model 'resnet51'; did you mean .*resnet50"):
        load_spec("timm:resnet51")


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match="needs timm, which is not installed: pip install timm"):
        load_spec("timm:resnet18")


HEAD = "from torch import nn\n"


@pytest.mark.parametrize(
    ("spec", "text", "message"),
    [
        ("modle.py", "x = 1", r"^no file modle.py; did you mean model.py\?$"),
        ("model.py", "x = 1", "no build_model.. and no nn.Module class that takes no arguments: "),
        (
            "model.py",
            HEAD + "class A(nn.Module):\n  def __init__(self, width): pass",
            "takes no arguments; A needs width: add build_model",
        ),
        (
            "model.py",
            HEAD + "class A(nn.Module): pass\nclass B(nn.Module): pass",
            r"defines several models \(A, B\): name one, e.g. model.py:A or model.py:B",
        ),
        ("model.py:buld", "def build(): pass", r"model.py has no 'buld'; did you mean build\?"),
        ("model.py:x", "x = 1", "x is an int, not a callable"),
        ("model.py:f", "def f(width): pass", r"f\(\) needs arguments \(width\)"),
        ("model.py:f", "def f(): return [1]", r"f\(\) returned a list, not a torch.nn.Module"),
        ("model.py:f", "def f(): pass", r"f\(\) returned None, not a torch.nn.Module"),
        ("nowhere.at:all", "", "no module 'nowhere.at' in the working directory or installed"),
        ("torchvision:resnet51", "", "torchvision has no model 'resnet51'; did you mean .*resnet"),
        ("st3fx:resnet-21", "", "st3fx has no model 'resnet-21'; did you mean .*resnet20"),
        ("st3fx:transformer", "", "st3fx has no model 'transformer'; there are resnet20, .*lstm"),
    ],
)
def test_bad_spec(tmp_path: Path, spec: str, text: str, message: str) -> None:
    write(tmp_path, "model.py", text)
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(spec)
    assert "\n" not in str(caught.value)


def test_not_a_python_file(tmp_path: Path) -> None:
    write(tmp_path, "model.txt", "hello")
    with pytest.raises(SpecError, match=r"model.txt is not a Python file"):
        load_spec("model.txt")
    write(tmp_path, "model.safetensors.index.json", "{}")
    with pytest.raises(SpecError, match=r"as --weights model\.safetensors\.index\.json$"):
        load_spec("model.safetensors.index.json")
    with pytest.raises(SpecError, match="is a folder: name the Python file in it"):
        load_spec(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "text", "message", "cause"),
    [
        ("model.py", "1 / 0", "model.py raised ZeroDivisionError: division", ZeroDivisionError),
        ("model.py", "def f(:", "model.py raised SyntaxError", SyntaxError),
        ("model.py", "import sys; sys.exit(3)", "model.py raised SystemExit: 3", SystemExit),
        ("model.py", "import nothing_here", "raised ModuleNotFoundError", ModuleNotFoundError),
        ("model:f", "import nothing_here", "raised ModuleNotFoundError", ModuleNotFoundError),
        ("model.py:f", "def f(): raise KeyError('a')", r"f\(\) raised KeyError: 'a'", KeyError),
        (
            "model.py",
            TINY + "    def example_inputs(): raise OSError('b')",
            r"example_inputs\(\) raised OSError: b",
            OSError,
        ),
    ],
)
def test_user_code_raises(
    tmp_path: Path, spec: str, text: str, message: str, cause: type[BaseException]
) -> None:
    write(tmp_path, "model.py", text)
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(spec)
    assert isinstance(caught.value.__cause__, cause)


def test_a_failed_import_leaves_no_module(tmp_path: Path) -> None:
    write(tmp_path, "model.py", "1 / 0")
    before = set(sys.modules)
    with pytest.raises(SpecError):
        load_spec("model.py")
    assert set(sys.modules) == before


def test_example_inputs_of_a_wrong_type(tmp_path: Path) -> None:
    write(tmp_path, "model.py", TINY + "    def example_inputs(): return [1]")
    with pytest.raises(SpecError, match=r"returned a list; return a tensor, a tuple of positional"):
        load_spec("model.py")

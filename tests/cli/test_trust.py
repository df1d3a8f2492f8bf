"""What data names runs only on the user's word, through the commands that open it."""

from __future__ import annotations

import hashlib
import json
import py_compile
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import st3fx
from st3fx.cli import main
from st3fx.errors import TrustError
from st3fx.loading import trust
from tests.models import TINY, write


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and a user who has trusted nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("ST3FX_TRUST", str(tmp_path / "state" / "trust.json"))
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def forget(folder: Path) -> None:
    """Be another user."""
    shutil.rmtree(folder / "state", ignore_errors=True)
    trust._ran.clear()


def leave_mark(folder: Path) -> str:
    """Code that leaves a mark."""
    return f"import pathlib; pathlib.Path({str(folder / 'ran')!r}).touch()"


def unload() -> None:
    """Load models' files again, as another process would."""
    for name in [key for key in sys.modules if key.endswith("_net") or key == "layers"]:
        del sys.modules[name]


def strange(folder: Path, text: str = TINY) -> Path:
    """A bundle of somebody else, with a model file in it that leaves a mark where it runs."""
    write(folder, "theirs/net.py", text + f"\n    {leave_mark(folder)}\n")
    made = run("convert", "theirs/net.py", "-o", "theirs/b")
    assert made.exit_code == 0, made.output
    (folder / "ran").unlink()
    forget(folder)
    unload()
    return folder / "theirs" / "b"


def edit(bundle: Path, **recipe: Any) -> None:
    """Change a manifest's recipe, as somebody who knows how its digest is made."""
    data = json.loads((bundle / "manifest.json").read_text())
    data.pop("digest")
    data["recipe"] |= recipe
    text = json.dumps(data, sort_keys=True)
    data["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(data))


COMMANDS = (
    ("export", "theirs/b", "--allow-dense", "-o", "x.onnx"),
    ("analyze", "theirs/b"),
    ("bench", "theirs/b", "--allow-dense", "--iterations", "1"),
    ("quantize", "theirs/b", "--allow-dense", "--data", "fashion-mnist-mini"),
    ("train", "theirs/b", "--test-only"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_strangers_code_is_not_run(folder: Path, command: tuple[str, ...]) -> None:
    strange(folder)
    result = run(*command)
    assert result.exit_code == 2, result.output
    assert not (folder / "ran").exists()
    line = result.stderr.splitlines()[-1]
    assert line.startswith(
        f"error: {folder}/theirs/b names code of its own, {folder}/theirs/net.py"
    )
    assert "--trust" in line
    assert "--model SPEC" in line


def test_trust_runs_it_and_is_remembered_for_that_folder(folder: Path) -> None:
    bundle = strange(folder)
    assert run("analyze", str(bundle), "--trust").exit_code == 0
    assert (folder / "ran").exists()
    assert run("analyze", str(bundle)).exit_code == 0
    shutil.copytree(bundle, folder / "theirs" / "again")
    assert run("analyze", "theirs/again").exit_code == 2
    # What it names now is something else.
    source = folder / "theirs" / "net.py"
    source.write_text(source.read_text() + "\n")
    edit(bundle, source={**source_of(bundle), "sha256": hashlib.sha256(
        source.read_bytes()).hexdigest()})  # fmt: skip
    (folder / "ran").unlink()
    unload()
    result = run("analyze", str(bundle))
    assert result.exit_code == 2
    assert "net.py, which" in result.stderr
    assert "was changed since you ran it: give --trust to run it as it is now" in result.stderr
    assert not (folder / "ran").exists()


def source_of(bundle: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((bundle / "manifest.json").read_text())["recipe"]["source"]
    return found


def test_a_users_own_bundles_ask_nothing(folder: Path) -> None:
    write(folder, "net.py", TINY)
    assert run("convert", "net.py").exit_code == 0
    assert run("analyze", "net.st3fx").exit_code == 0
    (folder / "net.st3fx").rename(folder / "moved")
    assert run("analyze", "moved").exit_code == 0
    state = folder / "state" / "trust.json"
    assert state.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.parent.iterdir()] == ["trust.json", "trust.lock"]
    # Nothing is trusted that anybody could have written, or that is damaged.
    state.chmod(0o622)
    assert run("analyze", "moved").exit_code == 2
    state.chmod(0o600)
    state.write_text(state.read_text()[:-5])
    assert run("analyze", "moved").exit_code == 2
    assert run("analyze", "moved", "--trust").exit_code == 0
    assert run("analyze", "moved").exit_code == 0


def test_the_user_names_the_code_himself(folder: Path) -> None:
    bundle = strange(folder)
    write(folder, "mine.py", TINY)
    assert run("analyze", str(bundle), "--model", "mine.py").exit_code == 0
    assert not (folder / "ran").exists()
    write(folder, "other.py", TINY.replace("Linear(4, 5)", "Linear(4, 6)"))
    result = run("analyze", str(bundle), "--model", "other.py")
    assert result.exit_code == 2
    assert "was changed since the bundle was written" in result.stderr


def test_in_python(folder: Path) -> None:
    bundle = strange(folder)
    with pytest.raises(TrustError, match="in Python trust=True, model=SPEC"):
        st3fx.load_bundle(bundle)
    st3fx.load_bundle(bundle, trust=True)
    st3fx.load_bundle(bundle)
    assert (folder / "ran").exists()


@pytest.mark.parametrize("spec", ["os:system", "subprocess:Popen", "os.path:exists", "sys:exit"])
def test_python_itself_holds_no_model(folder: Path, spec: str) -> None:
    for command in (("convert", spec), ("analyze", spec), ("train", spec)):
        result = run(*command)
        assert result.exit_code == 2
        assert (
            f"{spec.split(':', maxsplit=1)[0].split('.', maxsplit=1)[0]} is a part of Python itself"
            in result.stderr
        )
    bundle = strange(folder)
    edit(bundle, spec=spec, source=None)
    result = run("analyze", str(bundle), "--trust")
    assert result.exit_code == 2
    assert "is a part of Python itself" in result.stderr


def test_what_lies_beside_a_trusted_file_is_not_run(folder: Path) -> None:
    text = TINY + "\n    try:\n        import layers\n    except ImportError:\n        pass\n"
    write(folder, "net.py", text)
    assert run("convert", "net.py").exit_code == 0
    write(folder, "layers.py", leave_mark(folder))
    unload()
    result = run("analyze", "net.st3fx")
    assert result.exit_code == 2
    assert "layers.py was changed, or is new, since you ran the code beside it" in result.stderr
    assert not (folder / "ran").exists()
    unload()
    assert run("analyze", "net.st3fx", "--trust").exit_code == 0
    assert (folder / "ran").exists()
    unload()
    assert run("analyze", "net.st3fx").exit_code == 0


def test_what_the_user_imports_himself_is_not_asked_about(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a source that data's word has run; what that imports later is still asked about."""
    write(folder, "a_net.py", TINY + "\n    def late():\n        import late_layers\n")
    made = run("convert", "a_net.py")
    assert made.exit_code == 0, made.output
    unload()
    assert run("fold", "a_net.st3fx", "--allow-dense").exit_code == 0
    st3fx.load_bundle("a_net.st3fx")
    for name in ("own_layers", "late_layers"):
        write(folder, f"{name}.py", "here = 1\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = next(sys.modules[name] for name in sys.modules if name.endswith("_a_net"))
    with pytest.raises(TrustError, match="late_layers"):
        module.late()
    own: dict[str, Any] = {}
    exec("import a_net, own_layers, late_layers", own)
    assert own["late_layers"].here == 1
    assert own["a_net"].Tiny is not module.Tiny


def test_what_was_compiled_before_is_not_run(folder: Path) -> None:
    write(folder, "net.py", TINY + "\n    import layers\n")
    write(folder, "layers.py", "kind = 1\n")
    assert run("convert", "net.py").exit_code == 0
    evil = write(folder, "evil.py", leave_mark(folder))
    for cached in (folder / "__pycache__").glob("layers.*.pyc"):
        py_compile.compile(
            str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    unload()
    assert run("analyze", "net.st3fx").exit_code == 0
    assert not (folder / "ran").exists()


def test_weights_are_folded_without_the_class(folder: Path) -> None:
    bundle = strange(folder)
    args = ("fold", str(bundle), "--sparsity", "0.5")
    assert run(*args, "-o", "without.safetensors").exit_code == 0
    assert not (folder / "ran").exists()
    model = st3fx.load_bundle(bundle, trust=True)
    st3fx.Sparsifier(model).set_sparsity(0.5)
    whole, found = st3fx.fold(model).state_dict(), load_file("without.safetensors")
    assert whole.keys() == found.keys()
    assert all(torch.equal(whole[key], value) for key, value in found.items())
    assert int((found["head.weight"] == 0).sum()) > 4


def test_an_onnx_file_that_lies_there_stands_for_the_model(folder: Path) -> None:
    bundle = strange(folder)
    bundle.rename(bundle.with_name("b.st3fx"))
    args = ("theirs/b.st3fx", "--sparsity", "0.5")
    trusted = run("analyze", *args, "--batch", "1", "--json", "--trust")
    made = run("export", *args, "-o", "theirs/b.onnx")
    assert made.exit_code == 0, made.output
    forget(folder)
    unload()
    (folder / "ran").unlink()
    counted = run("analyze", *args, "--batch", "1", "--json")
    assert counted.exit_code == 0, counted.output
    before, after = json.loads(trusted.stdout), json.loads(counted.stdout)
    for key in ("dense_macs", "sparse_macs", "mac_bound", "inputs", "weight_sparsity"):
        assert before[key] == after[key], key
    assert after["model"] == str(folder / "theirs" / "b.onnx")
    assert not (folder / "ran").exists()
    # One with other zeros is not the bundle's.
    assert run("analyze", "theirs/b.st3fx", "--sparsity", "0.7").exit_code == 2


def test_a_report_shows_what_data_says(folder: Path) -> None:
    strange(folder)
    result = run("report", "theirs/b", "-o", "r.html", "--json")
    assert result.exit_code == 0, result.output
    assert not (folder / "ran").exists()
    sections = json.loads(result.stdout)["sections"]
    filled = [name for name, section in sections.items() if section["filled"]]
    assert filled == ["zeros", "sites", "dataflow", "sizes", "reproduce"]
    assert "give --trust" in sections["compute"]["missing"]

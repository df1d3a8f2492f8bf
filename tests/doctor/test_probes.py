"""Each probe finds its part broken when it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from st3fx.doctor import main_path, probes
from st3fx.doctor.probe import AbsentError


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_the_machine() -> None:
    assert probes.python().count(" on ") == 1
    assert " cores; " in probes.processor()
    assert probes.threads().startswith(f"{torch.get_num_threads()} of ")
    assert probes.memory().endswith(" GB")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 5 * 10**10))
    assert probes.disk() == f"50 GB free in {tmp_path}"
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**9))
    with pytest.raises(AbsentError, match=r"only 1\.0 GB are free"):
        probes.disk()


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/proc"))
    with pytest.raises(OSError, match="/proc"):
        probes.disk()


def test_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AbsentError) as none:
        probes.accelerator()
    assert none.value.advice == ""
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(AbsentError) as driver:
        probes.accelerator()
    assert "a build of PyTorch for CUDA" in driver.value.advice
    assert probes.accelerator_device() == torch.device("cpu")
    assert probes.triton_kernels() == "not needed without a GPU"


def _doubled(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Wrong in bf16 alone: the exact product is made with doubles."""
    return left.mm(right) * (2 if right.dtype == torch.float32 else 1)


def test_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(probes, "_features", lambda: {"avx512_bf16": True})
    assert probes.mixed_precision() == "cpu"
    monkeypatch.setattr(probes, "_features", dict)
    assert probes.mixed_precision() == "cpu (in software: slower than float32)"
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: a.mm(b) * (2 if b.dtype == torch.float32 else 1)
    )
    with pytest.raises(RuntimeError, match="a product in bf16 on cpu is 1 off"):
        probes.mixed_precision()


def test_the_main_path() -> None:
    assert main_path.torch_build().startswith(f"{torch.__version__}, built for ")
    assert main_path.shipped_data() == "4,000 training and 1,000 test images, 10 classes"
    assert main_path.convert_and_fold().startswith("a small model: 2 sites")
    assert main_path.count() == "1,176 multiplications in a small model, as by hand"


@pytest.mark.slow
def test_a_run_and_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_path.train() == "4 steps with Accelerate, to 90% sparsity"
    assert "CPUExecutionProvider" in main_path.export()
    assert not list(tmp_path.iterdir())


def test_a_fold_that_changes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st3fx.fold", lambda model: main_path.Tiny().eval(), raising=False)
    with pytest.raises(RuntimeError, match="computes something else"):
        main_path.convert_and_fold()


def test_a_count_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_path, "MACS", 7)
    with pytest.raises(RuntimeError, match="counted 1176 multiplications in a model that has 7"):
        main_path.count()


def test_damaged_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("st3fx.data.fashion_mnist.MINI", tmp_path)
    with pytest.raises(Exception, match="no Fashion-MNIST"):
        main_path.shipped_data()


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2.11", "click>=8.2", 'pytest>=99; extra == "test"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = main_path.packages()
    assert found == f"torch {importlib.metadata.version('torch')}, click " + (
        importlib.metadata.version("click")
    )
    wanted[1] = "click>=99.0"
    with pytest.raises(RuntimeError, match=r"click .* is too old: st3fx needs 99\.0"):
        main_path.packages()
    wanted[1] = "no-such-package"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        main_path.packages()


def test_a_folder_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    with pytest.raises(AbsentError, match="is not installed"):
        main_path.packages()


def test_triton_kernels_are_compared() -> None:
    # The interpreter runs them on the CPU (tests/conftest.py).
    said = probes.compare_kernels(torch.device("cpu"))
    assert said == "threshold and effective weights on cpu as on the CPU"


def test_triton_kernels_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "st3fx.sparsity.gpu.soft.soft_threshold", lambda jobs, smallest: jobs[0].out.zero_()
    )
    with pytest.raises(RuntimeError, match="effective weights differ"):
        probes.compare_kernels(torch.device("cpu"))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(AbsentError, match=r"there is no C\+\+ compiler"):
        probes.compiler()


def test_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from st3fx import native

    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "none.so")
    with pytest.raises(AbsentError, match="installed without them"):
        probes.kernels()


def test_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probes.timm() == importlib.metadata.version("timm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AbsentError, match="not installed") as missing:
        probes.transformers()
    assert missing.value.advice == "pip install transformers"


def test_no_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("st3fx.data.fashion_mnist.DEBIAN", tmp_path / "none")
    with pytest.raises(AbsentError) as missing:
        probes.fashion_mnist()
    assert missing.value.advice == "apt install dataset-fashion-mnist"

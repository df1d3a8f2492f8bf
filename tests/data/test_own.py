from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from st3fx.data import Data
from st3fx.errors import DataError, St3fxError
from tests.data_helpers import everything, make
from tests.models import write

LOADERS = """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    def noise(count, seed):
        torch.manual_seed(seed)
        return TensorDataset(torch.randn(count, 5), torch.arange(count))

    def make_loaders(batch_size, seed=1):
        return (
            DataLoader(noise(12, seed), batch_size, shuffle=True),
            DataLoader(noise(4, seed), batch_size),
        )

    def unseeded(batch_size):
        drawn = TensorDataset(torch.randn(batch_size, 5), torch.arange(batch_size))
        return DataLoader(drawn, batch_size), DataLoader(drawn, batch_size)

    def with_all(**settings):
        assert settings["workers"] == 0 and settings["path"] is None
        return list(make_loaders(settings["batch_size"], settings["seed"]))
"""


@pytest.fixture
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("_working_directory")
def test_own_loaders(tmp_path: Path) -> None:
    write(tmp_path, "loaders.py", LOADERS)
    before = torch.get_rng_state()
    data = make("loaders.py:make_loaders", seed=7)
    assert (data.name, data.input_shape, data.num_classes) == (
        "loaders.py:make_loaders",
        None,
        None,
    )
    assert data.train.batch_size == 4
    torch.testing.assert_close(data.example(3), data.train.dataset[:3][0], rtol=0, atol=0)
    assert data.input_shape == (5,)
    assert torch.equal(torch.get_rng_state(), before)
    expected = everything(data.test)[0]
    torch.manual_seed(7)
    assert torch.equal(expected, torch.randn(4, 5))
    for name in ("loaders.py", "loaders.py:with_all", "loaders:make_loaders"):
        assert torch.equal(everything(make(name, seed=7).test)[0], expected)
    once = make("loaders.py:unseeded", seed=7).example()
    torch.manual_seed(1)
    assert torch.equal(make("loaders.py:unseeded", seed=7).example(), once)


@pytest.mark.usefixtures("_working_directory")
def test_own_data(tmp_path: Path) -> None:
    text = """
        from st3fx.data import DataSettings, make_data
        def make_loaders(): return make_data(DataSettings())
    """
    write(tmp_path, "loaders.py", text)
    assert make("loaders.py").num_classes == 10


@pytest.mark.usefixtures("_working_directory")
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("loader.py", "", r"^no file loader.py; did you mean loaders.py\?$"),
        ("loaders.py", "x = 1", r"has no 'make_loaders'; define make_loaders\(batch_size, seed\)"),
        ("loaders.py:mke", "def make(): pass", r"has no 'mke'; did you mean make\?; define mke\("),
        ("loaders.py:x", "x = 1", "loaders.py: x is an int, not a function"),
        (
            "loaders.py:f",
            "def f(root): pass",
            r"f\(\) needs arguments \(root\) .*may have batch",
        ),
        ("loaders.py:f", "def f(): 1 / 0", r"loaders.py: f\(\) raised ZeroDivisionError: division"),
        ("loaders.py", "1 / 0", r"loaders.py raised ZeroDivisionError: division by zero"),
        ("nowhere.at:all", "", "no module 'nowhere.at' in the working directory"),
        ("loaders.py:f", "def f(): pass", r"f\(\) returned None; return \(train_loader, test_load"),
        ("loaders.py:f", "def f(): return 1, 2, 3", r"f\(\) returned a tuple of 3; return"),
        ("loaders.py:f", "def f(): return {}, []", r"returned a pair with a dict in it; return"),
    ],
)
def test_own_loaders_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    write(tmp_path, "loaders.py", text)
    with pytest.raises(DataError, match=message) as caught:
        make(name)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, St3fxError)


class Stream(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((torch.full((2,), float(i)), i) for i in range(6))


class Noise(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return torch.rand(2), self.tensors[0][index]


class Epochs(TensorDataset):
    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_examples_of_unusual_loaders() -> None:
    def example(loader: DataLoader[Any]) -> Any:
        return Data(loader, loader, "own", input_shape=None, num_classes=None).example(2)

    assert example(DataLoader(Stream(), 3)).tolist() == [[0, 0], [1, 1]]
    pairs = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.arange(3))
    assert example(DataLoader(pairs, batch_size=1, shuffle=True)).tolist() == [[0, 1], [2, 3]]
    assert example(DataLoader(TensorDataset(*pairs[:1]), 9)).shape == (1, 2)
    whole: Any = [pairs[:]]
    assert example(DataLoader(whole, batch_size=None)).shape == (3, 2)
    single: Any = [torch.ones(2), torch.ones(2)]
    with pytest.raises(DataError, match=r"own: a batch of .* is a Tensor; it must be a pair \(inp"):
        example(DataLoader(single, 2))


def test_an_example_of_a_random_data_set_draws_nothing() -> None:
    loader = DataLoader(Noise(torch.arange(4)), 2, shuffle=True)
    before = torch.get_rng_state()
    Data(loader, loader, "own", None, None).example()
    assert torch.equal(torch.get_rng_state(), before)


def test_own_loaders_are_told_the_epoch() -> None:
    dataset = Epochs(torch.ones(4, 2), torch.ones(4))
    sampler: Any = torch.utils.data.DistributedSampler(dataset, num_replicas=1, rank=0)
    loader: DataLoader[Any] = DataLoader(dataset, 2, sampler=sampler)
    Data(loader, loader, "own", None, None).set_epoch(5)
    assert (dataset.epoch, sampler.epoch) == (5, 5)

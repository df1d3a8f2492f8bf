"""Marks of tensors, what operators write to, and whose forward runs."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st3fx.provenance import Marks, names_kept, storage_of, written_by


def test_a_mark_of_memory_is_shared_by_views_and_data() -> None:
    marks = Marks[str](of_memory=True)
    tensor = torch.randn(3, 4)
    marks.put(tensor, "mine")
    assert [marks.of(t) for t in (tensor, tensor[1:], tensor.t(), tensor.data)] == ["mine"] * 4
    assert marks.of(tensor.clone()) is None
    marks.put(tensor[1:], "anew")
    assert marks.of(tensor) == "anew"


def test_a_mark_of_an_object_is_its_own() -> None:
    marks = Marks[str](of_memory=False)
    tensor = torch.randn(3, 4)
    view = tensor[1:]
    marks.put(tensor, "whole")
    marks.put(view, "part")
    assert [marks.of(t) for t in (tensor, view, tensor[1:])] == ["whole", "part", None]


@pytest.mark.parametrize("of_memory", [True, False])
def test_a_mark_ends_with_its_tensor(of_memory: bool) -> None:
    """However often an address is another tensor's later."""
    marks = Marks[int](of_memory=of_memory)
    for number in range(100):
        tensor = torch.randn(8)
        assert marks.of(tensor) is None
        marks.put(tensor, number)
        assert marks.of(tensor) == number
        del tensor
        gc.collect(0)


def test_tensors_of_the_model_keep_their_marks() -> None:
    marks = Marks[str](of_memory=True)
    weight = torch.randn(3)
    marks.own(weight, "weight")
    marks.put(weight, "other")
    assert marks.of(weight) == marks.owned(weight) == "weight"
    assert marks.owned(torch.randn(3)) is None


def test_tensors_without_a_storage_are_marked_as_objects() -> None:
    marks = Marks[str](of_memory=True)
    sparse = torch.eye(3).to_sparse()
    assert storage_of(sparse) is None
    marks.put(sparse, "sparse")
    assert marks.of(sparse) == "sparse"


def test_what_an_operator_writes_to() -> None:
    a, b, out = torch.randn(2, 2), torch.randn(2, 2), torch.empty(2, 2)
    aten = torch.ops.aten
    assert written_by(aten.add.Tensor, (a, b), {}) == []
    assert [id(t) for t in written_by(aten.add_.Tensor, (a, b), {})] == [id(a)]
    assert [id(t) for t in written_by(aten.mm.out, (a, b), {"out": out})] == [id(out)]
    assert [id(t) for t in written_by(aten._foreach_add_.Scalar, ([a, b], 1), {})] == [id(a), id(b)]


class Asks(nn.Module):
    """Says whose forward runs, around a module of the model and one that is not in it."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.fc.register_forward_hook(lambda *_: said.append(stack[-1]))
        said: list[str] = []
        stranger = nn.Identity()
        stranger.register_forward_hook(lambda *_: said.append(stack[-1]))
        self.said, self.strangers = said, (stranger,)

    def forward(self, x: Tensor) -> Any:
        return self.strangers[0](self.fc(x))


def test_whose_forward_runs() -> None:
    stack = [""]
    calls: list[str] = []
    model = nn.Sequential(Asks(stack))
    before = nn.Module.__call__

    def enter(module: nn.Module, name: str, args: Any, kwargs: Any) -> None:
        assert model.get_submodule(name) is module
        calls.append(f"> {name}")

    def leave(module: nn.Module, name: str) -> None:
        calls.append(f"< {name}")

    with names_kept(model, stack, enter, leave):
        model(torch.randn(1, 2))
    assert nn.Module.__call__ is before
    assert stack == [""]
    assert model[0].said == ["0.fc", "0"]
    assert calls == ["> ", "> 0", "> 0.fc", "< 0.fc", "< 0", "< "]


def test_a_forward_that_fails_leaves_the_stack_as_it_was() -> None:
    stack = [""]
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), names_kept(model, stack):
        model(torch.randn(1, 3))
    assert stack == [""]

"""Tied embeddings: skipped with the reason, or sparse in the projection alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from tests.parity import require_parity, require_plain

TOKENS = torch.tensor([[0, 1, 2, 3], [3, 4, 0, 0]])


class Language(nn.Module):
    """An embedding whose table is the projection too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.body(self.embed(tokens)).relu())


class Branching(Language):
    """The same, in a forward that no trace gets through."""

    def forward(self, tokens: Tensor) -> Any:
        y = self.body(self.embed(tokens)).relu()
        return self.head(y) if y.sum() > -1 else self.head(-y)


class Functional(Language):
    """The lookup in the model's own forward."""

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.body(F.embedding(tokens, self.embed.weight)).relu())


class Together(Language):
    """Lookup and product in one forward."""

    def forward(self, tokens: Tensor) -> Any:
        y = self.body(F.embedding(tokens, self.embed.weight)).relu()
        return F.linear(y, self.embed.weight)


def test_the_whole_table_is_skipped_by_default() -> None:
    _model, sparsifier = st3fx.convert(Language(), TOKENS)
    assert [site.name for site in sparsifier.plan.sites] == ["body.weight"]
    (skipped,) = sparsifier.plan.skipped
    assert (skipped.name, skipped.numel) == ("embed.weight", 96)
    assert skipped.reason.startswith("tied: an embedding reads its rows too (include_tied")


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("kind", [Language, Branching, Functional])
def test_the_projection_alone_is_sparse(kind: type[Language], verify: bool) -> None:
    original = kind()
    model, sparsifier = st3fx.convert(original, TOKENS, include_tied=True, verify=verify)
    assert {site.name: site.tied for site in sparsifier.plan.sites} == {
        "body.weight": False,
        "head.weight": True,
    }
    assert not sparsifier.plan.skipped
    for training in (True, False):
        require_parity(original, model, (TOKENS,), {}, training)

    sparsifier.set_sparsity(0.5)
    sparse = sparsifier.effective_weights()
    oracle = copy.deepcopy(original)
    oracle.head.weight = nn.Parameter(sparse["head.weight"])
    oracle.body.weight = nn.Parameter(sparse["body.weight"])
    assert (oracle.head.weight == 0).any()
    assert torch.equal(model.eval()(TOKENS), oracle.eval()(TOKENS))

    oracle(TOKENS).square().sum().backward()
    model.zero_grad()
    model(TOKENS).square().sum().backward()
    assert oracle.head.weight.grad is not None
    assert oracle.embed.weight.grad is not None
    both = oracle.head.weight.grad + oracle.embed.weight.grad
    gradient = model.get_parameter("embed.weight").grad
    assert gradient is not None
    assert torch.equal(gradient, both)


def test_fold_unties_the_projection() -> None:
    original = Language()
    model, sparsifier = st3fx.convert(original, TOKENS, include_tied=True)
    sparsifier.set_sparsity(0.5)
    sparse = sparsifier.effective_weights()["head.weight"]
    folded: Any = st3fx.fold(model)
    require_plain(folded)
    assert list(folded.state_dict()) == list(original.state_dict())
    assert torch.equal(folded.head.weight, sparse)
    assert torch.equal(folded.embed.weight, original.embed.weight)
    assert torch.equal(folded.eval()(TOKENS), model.eval()(TOKENS))


def test_one_forward_that_does_both_stays_dense() -> None:
    _, sparsifier = st3fx.convert(Together(), TOKENS, include_tied=True)
    assert [site.name for site in sparsifier.plan.sites] == ["body.weight"]
    reasons = [item.reason for item in sparsifier.plan.skipped]
    assert reasons == ["tied: one forward both multiplies with it and reads its rows"]


def test_masks_and_state_of_a_tied_projection() -> None:
    model, sparsifier = st3fx.convert(Language(), TOKENS, include_tied=True)
    sparsifier.set_sparsity(0.5)
    sparsifier.freeze()
    again, other = st3fx.convert(Language(), TOKENS, include_tied=True)
    again.load_state_dict(model.state_dict())
    assert other.sparsity == sparsifier.sparsity > 0.4
    assert torch.equal(again.eval()(TOKENS), model.eval()(TOKENS))


class TwoTables(Language):
    """Two lookups and a projection of one table, as encoder-decoders have them."""

    def forward(self, tokens: Tensor) -> Any:
        y = self.body(self.embed(tokens).relu() + self.embed(tokens.flip(1)))
        return self.head(y.relu())


def test_several_lookups_of_one_table() -> None:
    _, sparsifier = st3fx.convert(TwoTables(), TOKENS, include_tied=True)
    assert [site.name for site in sparsifier.plan.sites] == ["body.weight", "head.weight"]
    assert sparsifier.plan.verified

"""Packed sequences are packed and padded in a graph, for whatever lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.parity import check

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([5, 3, 2])


class Packs(nn.Module):
    """By torch's own names."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 8, batch_first=True, **options)
        self.head = nn.Linear(8 * (1 + self.rnn.bidirectional), 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        output, _ = self.rnn(packed)
        padded, sizes = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
        return self.head(padded), sizes


class Sorts(Packs):
    """By names that this file has imported."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, True, False)
        output, state = self.rnn(packed)
        padded, sizes = pad_packed_sequence(output, batch_first=True)
        return self.head(padded), sizes, state, output


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.2}])
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("kind", [Packs, Sorts])
def test_it_is_a_graph(
    kind: type[Packs], layer: type[nn.RNNBase], options: dict[str, Any], verify: bool
) -> None:
    """But for an LSTM, the layer is one of its own: it asks for the sizes of packed rows."""
    checked = check(kind(layer, **options), (X, LENGTHS), verify=verify)
    assert list(checked.islands) == ([""] if layer is nn.LSTM else ["", "rnn"])
    assert not checked.opaque


@pytest.mark.parametrize("kind", [Packs, Sorts])
def test_for_other_lengths(kind: type[Packs]) -> None:
    original = kind(nn.GRU).eval()
    checked = check(original, (X, LENGTHS))
    original.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    for lengths in ([5, 5, 5], [4, 1, 1], [2, 2, 1]):
        given = X, torch.tensor(lengths)
        variants = checked.model.__dict__["st3fx_forward"].variants
        assert any(variant.tensors(given, {}) is not None for variant in variants)
        for ours, wanted in zip(
            checked.model.eval()(*given)[:2], original(*given)[:2], strict=True
        ):
            assert torch.equal(ours, wanted)


def test_what_torch_refuses_is_refused_as_by_torch() -> None:
    original = Packs(nn.GRU)
    model = check(original, (X, LENGTHS)).model
    for lengths, words in (
        ([2, 3, 5], "sorted in decreasing order"),
        ([5, 3, 0], "greater than 0"),
    ):
        for each in (original, model):
            with pytest.raises(RuntimeError, match=words):
                each(X, torch.tensor(lengths))

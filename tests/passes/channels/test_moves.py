"""Constants and channels on their way through pooling, padding and operators that move values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from st3fx.passes.channels import liveness
from tests.passes.channels.nets import Both, Function, concatenated, emptied, reduced, shuffle
from tests.passes.channels.test_forward import chain, conv, image, sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "left"),
    [
        (nn.MaxPool2d(3, 2, 1), 5),
        (nn.AvgPool2d(2), 5),
        (nn.AvgPool2d(3, 1, 1), 8),  # its padding is averaged too
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), 5),
        (nn.AdaptiveAvgPool2d(2), 5),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 5),
        (Function(lambda x: x.mean((2, 3), keepdim=True)), 5),
        (Function(lambda x: x.amax(3, keepdim=True)), 5),
        (Function(lambda x: x.sum((2, 3), keepdim=True)), 8),
        (Function(lambda x: F.pad(x, (1, 1, 1, 1))), 8),
        (Function(lambda x: F.pad(x, (1, 1, 1, 1), value=0.7)), 5),
        (Function(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), 5),
        (Function(lambda x: x.permute(0, 2, 3, 1).roll(1, 1).permute(0, 3, 1, 2)), 5),
        (Function(lambda x: x.softmax(1)), 8),
        (Function(lambda x: x.flip(2)), 8),  # no rule: it may need all
    ],
)
def test_spatial_operators(pool: nn.Module, left: int) -> None:
    assert sizes(chain(conv(4, 8, empty=3), pool, conv(8, 6)))[0]["0"] == left


@pytest.mark.slow
def test_flattening_repeats() -> None:
    model = chain(conv(4, 8, empty=3), F.relu, nn.Flatten(), nn.Linear(8 * 36, 5))
    graph, _ = reduced(model.double(), image())
    assert graph.state_dict()["3.weight"].shape == (5, 5 * 36)


@pytest.mark.slow
def test_channels_that_padding_adds_are_constants() -> None:
    padded = Function(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
    inner = conv(8, 12, 3, stride=2, empty=3, bias=0.0)
    stem = conv(4, 8, empty=2, bias=0.0)
    found, _ = sizes(chain(stem, Both(padded, inner, torch.add), F.relu, conv(12, 6)))
    assert found == {"0": 7, "1.right": 9, "3": 6}


def test_pixel_shuffle_takes_four_for_one() -> None:
    found, _ = sizes(chain(conv(4, 16, empty=7), nn.PixelShuffle(2), conv(4, 6)))
    assert found == {"0": 12, "2": 6}


@pytest.mark.slow
def test_channel_shuffle_and_halves() -> None:
    halves = Both(
        Function(lambda x: x.chunk(2, 1)[0]), Function(lambda x: x[:, 4:].relu()), concatenated
    )
    model = chain(conv(4, 8, empty=3), lambda x: shuffle(x, 2), halves, conv(8, 6))
    assert sizes(model)[0] == {"0": 5, "3": 6}


def test_transposed_convolutions_have_carriers() -> None:
    up = nn.ConvTranspose2d(8, 6, 3, stride=2)
    emptied(up, share=0)
    found, kept = sizes(chain(conv(4, 8, empty=3), up))
    assert found == {"0": 6, "1": 6}
    assert kept == {liveness.CARRIER: 1}

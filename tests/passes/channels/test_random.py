"""Random networks: what is left computes the same, in float64, to the last digits."""

from __future__ import annotations

import os

import pytest
import torch

from tests.passes.channels.nets import random_net, reduced

# More in an hour of one's own: ST3FX_CHANNEL_NETS=2000 pytest tests/passes/channels/test_random.py
NETS = int(os.environ.get("ST3FX_CHANNEL_NETS", "40"))
CHUNK = 10


@pytest.mark.parametrize("first", range(0, NETS, CHUNK))
def test_random_networks(first: int) -> None:
    removed = 0
    for seed in range(first, first + CHUNK):
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        _, report = reduced(random_net(seed), x)
        removed += report.channels[0] - report.channels[1]
        assert report.parameters[1] <= report.parameters[0] + report.channels[0]
    assert removed > 0

"""Random networks: what is left computes the same, in float64, to the last digits.

Those of ``nets`` are made of the parts of image models; those of ``programs`` turn channels into
height, width, time and batch. For an hour of one's own:

    ST3FX_CHANNEL_NETS=2000 ST3FX_CHANNEL_PROGRAMS=2000 ST3FX_CHANNEL_FILES=100 \
        pytest tests/passes/channels/test_random.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.passes.channels.nets import random_net, reduced
from tests.passes.channels.programs import agree, agree_in_a_file, random_program

# torch says it of the weights' list of its own recurrent layers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attribute.*assigned during export",
    "ignore:.*the outputs are the same for every input",  # where all filters of a layer are empty
    "ignore:var... degrees of freedom",  # torch, of normalised single values
    "ignore:input's size at dim=",  # torch, of instance norms that take the batch for channels
)

NETS = int(os.environ.get("ST3FX_CHANNEL_NETS", "20"))
PROGRAMS = int(os.environ.get("ST3FX_CHANNEL_PROGRAMS", "12"))
FILES = int(os.environ.get("ST3FX_CHANNEL_FILES", "2"))
CHUNK = 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, NETS, CHUNK))
def test_random_networks(first: int) -> None:
    removed = 0
    for seed in range(first, first + CHUNK):
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        _, report = reduced(random_net(seed), x)
        removed += report.channels[0] - report.channels[1]
        assert report.parameters[1] <= report.parameters[0] + report.channels[0]
    assert removed > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_random_axes(seed: int) -> None:
    """One in three with a free batch: expressions for sizes take most of the time."""
    model, x = random_program(seed)
    report = agree(model, x, free=seed % 3 == 0)
    assert report.parameters[1] <= report.parameters[0] + report.channels[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FILES))
def test_random_axes_in_a_file(seed: int, tmp_path: Path) -> None:
    model, x = random_program(seed)
    agree_in_a_file(model, x, tmp_path / "program.onnx")

"""Several optimizers as one: the same steps, state dicts that go on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from st3fx.training.together import Together


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))


def parts(net: nn.Sequential) -> list[torch.optim.Optimizer]:
    groups: list[dict[str, Any]] = [
        {"params": [net[1].weight]},
        {"params": [net[1].bias], "lr": 0.5},
    ]
    sgd = torch.optim.SGD(net[0].parameters(), 0.1, momentum=0.9)
    return [sgd, torch.optim.Adam(groups, 0.01)]


def backward(net: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    loss: torch.Tensor = net(torch.randn(6, 4, generator=generator)).square().mean()
    net.zero_grad()
    loss.backward()
    return loss


def test_steps_are_those_of_the_parts_and_go_on_from_a_state_dict() -> None:
    alone, net = model(), model()
    separate, together = parts(alone), Together(parts(net))
    for step in range(3):
        backward(alone, step)
        backward(net, step)
        for part in separate:
            part.step()
        together.step()
    other = copy.deepcopy(net)
    second = Together(parts(other))
    second.load_state_dict(copy.deepcopy(together.state_dict()))
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.01, 0.5]
    for step in range(3, 6):
        for net_ in (alone, net, other):
            backward(net_, step)
        for optimizer in (*separate, together, second):
            optimizer.step()
    for a, b, c in zip(alone.parameters(), net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_closure_is_called_once() -> None:
    net = model()
    together, losses = Together(parts(net)), []

    def closure() -> torch.Tensor:
        losses.append(backward(net, 0))
        return losses[-1]

    assert together.step(closure) is losses[0]
    assert len(losses) == 1

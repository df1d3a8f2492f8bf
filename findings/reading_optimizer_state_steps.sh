#!/usr/bin/env bash
# torch 2.14.1: `get_optimizer_state_dict` of an optimizer that has not stepped yet makes a real step.
#
# Its name and documentation speak of reading. Where the state is empty it is filled by `optimizer.step()`
# with gradients of zero and a learning rate of 0 (`_init_optim_state` in
# torch/distributed/checkpoint/state_dict.py); `set_optimizer_state_dict`, which loads a checkpoint into a
# fresh optimizer, does the same. Seen:
#
#     hooks of the optimizer's step run     once, at a learning rate of 0
#     AdamW's state says                    step 1
#     weights, AdamW                        as they were
#     weights, an optimizer of one's own    changed: its step clips weights, whatever the rate
#
# Who counts steps by hooks (schedules, averages, pruning) counts one that nobody made, and an
# optimizer whose step is not proportional to its learning rate changes the model when a checkpoint is
# saved. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy
cat >"$folder/run.py" <<'PY'
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

print("torch", torch.__version__)


class Clipping(torch.optim.Optimizer):
    """Gradient descent that keeps weights in a range, as training with clipped weights does."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "limit": 0.05})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.state[weight]["steps"] = self.state[weight].get("steps", 0) + 1
                    weight.add_(weight.grad, alpha=-group["lr"])
                    weight.clamp_(-group["limit"], group["limit"])


def read(make):
    """Rates at which steps were made, the state's steps, and whether the weights stayed."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    before, rates = net.weight.detach().clone(), []
    optimizer = make(net.parameters())
    optimizer.register_step_pre_hook(
        lambda own, args, kwargs: rates.append(float(own.param_groups[0]["lr"]))
    )
    state = get_optimizer_state_dict(net, optimizer)["state"]["weight"]
    return rates, float(state.get("step", state.get("steps"))), torch.equal(before, net.weight)


adam = read(lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5))
own = read(Clipping)
print("AdamW:   steps at rates", adam[0], "state says", adam[1], "weights stayed", adam[2])
print("clipping: steps at rates", own[0], "state says", own[1], "weights stayed", own[2])
assert adam == ([0.0], 1.0, True)
assert own == ([0.0], 1.0, False)
PY
"$folder/venv/bin/python" "$folder/run.py"

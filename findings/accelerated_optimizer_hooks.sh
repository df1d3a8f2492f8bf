#!/usr/bin/env bash
# accelerate 1.15.0 over torch 2.13.0: a prepared optimizer is a torch.optim.Optimizer by its class,
# and has that class's methods for hooks, but none of them works.
#
# `Accelerator.prepare` gives an `AcceleratedOptimizer`. It derives from `torch.optim.Optimizer`
# without calling its `__init__`, so that the tables of hooks are missing:
#
#     isinstance(prepared, torch.optim.Optimizer)   True
#     prepared.register_step_post_hook(f)           AttributeError: ... '_optimizer_step_post_hooks'
#     prepared.optimizer.register_step_post_hook(f) works, and f runs once for each real update:
#                                                   2 times in 6 batches at 3 accumulated ones
#
# Who counts updates by a hook (a schedule, an average of weights) has to look for the inner
# optimizer; `hasattr` does not tell the two apart. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 accelerate==1.15.0 numpy
cat >"$folder/run.py" <<'PY'
import accelerate
import torch
from accelerate import Accelerator

print("accelerate", accelerate.__version__, "torch", torch.__version__)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
layer = torch.nn.Linear(4, 2)
model, prepared = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
assert isinstance(prepared, torch.optim.Optimizer)
assert hasattr(prepared, "register_step_post_hook")
try:
    prepared.register_step_post_hook(lambda *_: None)
except AttributeError as error:
    print("register_step_post_hook on what prepare gave:", error)
    assert "_optimizer_step_post_hooks" in str(error)
else:
    raise SystemExit("the hook is accepted now")
updates = []
prepared.optimizer.register_step_post_hook(lambda *_: updates.append(1))
for _ in range(6):
    with accelerator.accumulate(model):
        prepared.zero_grad()
        accelerator.backward(model(torch.ones(1, 4)).sum())
        prepared.step()
print("runs of a hook on the inner optimizer in 6 batches, 3 accumulated:", len(updates))
assert len(updates) == 2
PY
"$folder/venv/bin/python" "$folder/run.py"

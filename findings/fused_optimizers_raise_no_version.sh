#!/usr/bin/env bash
# torch 2.14.1: a step of a fused optimizer does not raise the version of the parameters it changes.
#
# `tensor._version` counts writes in place: each operator that writes raises it, and the plain and
# foreach forms of torch's optimizers do. The fused forms change the same values and leave it:
#
#     SGD      plain 1, foreach 1, fused 0
#     AdamW    plain 2, foreach 2, fused 0
#     Adagrad  plain 1, foreach 1, fused 0
#
# Who keeps something that was computed from parameters (a cache of transformed weights, a check that
# an optimizer trains them) cannot tell by versions that a fused step has run; trainers choose the
# fused form by default where it is there. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy
cat >"$folder/run.py" <<'PY'
import torch

print("torch", torch.__version__)


def versions(kind, **form):
    """How often the parameter's version is raised by one step."""
    weight = torch.nn.Parameter(torch.ones(4))
    weight.grad = torch.ones(4)
    before, values = weight._version, weight.detach().clone()
    kind([weight], lr=0.1, **form).step()
    assert not torch.equal(weight, values)
    return weight._version - before


for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad):
    plain, foreach = versions(kind, foreach=False), versions(kind, foreach=True)
    fused = versions(kind, fused=True)
    print(f"{kind.__name__:8} plain {plain}, foreach {foreach}, fused {fused}")
    assert plain > 0
    assert foreach > 0
    assert fused == 0
PY
"$folder/venv/bin/python" "$folder/run.py"

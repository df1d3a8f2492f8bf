"""LoRA over a sparse, frozen base: the lines marked ``# st3fx`` are what is added."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import st3fx
from st3fx.integrations.peft import keep_zeros, merge  # st3fx

METHOD = st3fx.ST3(rescale=False, normalize="sigma")  # the small layer keeps some of its weights


def main(steps: int = 10) -> nn.Module:
    """Prune at once, train an adapter, and give back a plain model with the same zeros."""
    x = torch.randn(32, 16)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
    base, sparsifier = st3fx.convert(model, x, METHOD)  # st3fx
    sparsifier.set_sparsity(0.7)  # st3fx (or train it sparse before)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["0", "2"]))
    adapted = keep_zeros(adapted)  # st3fx
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (adapted(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
    return merge(adapted)  # st3fx


if __name__ == "__main__":
    print(main())  # noqa: T201

"""Models of the inference benchmark: random weights, pruned to one sparsity in every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import cases


def build(name: str) -> nn.Module:
    """A model with random weights, the same each time."""
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 1000)).eval()
    if name == "bert_base":
        return _Bert()
    model = cases.build(name).eval()
    if name == "vit_b_16":
        # torchvision starts the head with zeros: all outputs would be the same.
        nn.init.normal_(model.heads.head.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    return model


def sample(name: str) -> Tensor:
    """One input."""
    generator = torch.Generator().manual_seed(0)
    if name == "bert_base":
        return torch.randint(0, 1000, (1, 128), generator=generator)
    shape = (1, 2048) if name == "mlp" else (1, 3, 224, 224)
    return torch.randn(shape, generator=generator)


class _Bert(nn.Module):
    """BERT-base on tokens alone, with random weights (the package transformers has it)."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel  # noqa: PLC0415

        super().__init__()
        config: Any = BertConfig()
        config._attn_implementation = "eager"
        bert: Any = BertModel(config)
        self.bert: nn.Module = bert.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.bert(tokens).last_hidden_state
        return hidden


@torch.no_grad()
def pruned_blocks(model: nn.Module, sparsity: float, size: int = 4) -> nn.Module:
    """As ``pruned``, but blocks of consecutive input channels at one tap, by their norms."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and (module is convolutions[0] or module.groups > 1):
            continue
        for key in ("weight", "in_proj_weight"):
            weight = getattr(module, key, None)
            if (
                not isinstance(weight, nn.Parameter)
                or weight.dim() < 2
                or (isinstance(module, nn.Embedding))
            ):
                continue
            last = weight.movedim(1, -1)
            blocks = last.reshape(-1, size).clone()
            order = blocks.norm(dim=1).argsort()
            blocks[order[: round(len(order) * sparsity)]] = 0
            weight.copy_(blocks.reshape(last.shape).movedim(-1, 1))
    return model


@torch.no_grad()
def pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """The smallest weights of every layer become zero, but for the first convolution's."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and (module is convolutions[0] or module.groups > 1):
            continue
        for key in ("weight", "in_proj_weight"):
            weight = getattr(module, key, None)
            if isinstance(weight, nn.Parameter) and weight.dim() > 1:
                count = round(weight.numel() * sparsity)
                weight.view(-1)[weight.abs().view(-1).argsort()[:count]] = 0
    return model

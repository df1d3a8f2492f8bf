# ruff: noqa: D102 - what a model does, its class says
"""Small models that use weights in ways no layer of torch.nn does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.utils.checkpoint import checkpoint


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised in its forward."""

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - as in nn.Conv2d
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        spread = self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(input, (self.weight - mean) / (spread + 1e-5), self.bias)


class Conv1D(nn.Module):
    """GPT-2's linear layer, with its weight transposed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.shape[:-1], -1)


class Product(nn.Module):
    """A raw parameter in the product that is named."""

    def __init__(self, kind: str, *shape: int) -> None:
        super().__init__()
        self.kind = kind
        self.raw = nn.Parameter(torch.randn(*shape) * 0.1)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "einsum":
            return torch.einsum("bsi,oi->bso", x, self.raw)
        if self.kind == "einsum of heads":
            return torch.einsum("bsi,hio->bhso", x, self.raw)
        if self.kind == "left":
            return self.raw @ x.transpose(1, 2)
        if self.kind == "tensordot":
            return torch.tensordot(x, self.raw, dims=([2], [0]))
        if self.kind == "baddbmm":
            return torch.baddbmm(x.new_zeros(1), x, self.raw.expand(x.shape[0], -1, -1))
        if self.kind == "conv":
            return F.conv1d(x.transpose(1, 2), self.raw, padding="same")
        return x @ self.raw.t()


class Lists(nn.Module):
    """A ParameterList and a ParameterDict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.randn(16, 16) * 0.2) for _ in range(3))
        self.named = nn.ParameterDict({"out": nn.Parameter(torch.randn(16, 4) * 0.2)})

    def forward(self, x: Tensor) -> Any:
        for weight in self.layers:
            x = (x @ weight).relu()
        return x @ self.named["out"]


class Experts(nn.Module):
    """A mixture of experts: all of them in one tensor, or one after the other by routing."""

    def __init__(self, routed: bool) -> None:
        super().__init__()
        self.routed = routed
        self.gate = nn.Linear(16, 4, bias=False)
        self.up = nn.Parameter(torch.randn(4, 16, 32) * 0.1)
        self.down = nn.Parameter(torch.randn(4, 32, 16) * 0.1)

    def forward(self, x: Tensor) -> Any:
        scores = self.gate(x).softmax(-1)
        if not self.routed:
            hidden = torch.einsum("bsi,eio->ebso", x, self.up).relu()
            return torch.einsum("ebso,eoi,bse->bsi", hidden, self.down, scores)
        flat, weights = x.flatten(0, 1), scores.flatten(0, 1)
        chosen = weights.argmax(-1)
        out = torch.zeros_like(flat)
        for expert in range(4):
            rows = (chosen == expert).nonzero()[:, 0]
            if rows.numel():
                y = (flat[rows] @ self.up[expert]).relu() @ self.down[expert]
                out = out.index_add(0, rows, y * weights[rows, expert, None])
        return out.view_as(x)


class Tied(nn.Module):
    """An embedding whose table is the projection too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.body(self.embed(tokens)).relu())


class Ensemble(nn.Module):
    """Three networks under vmap, their parameters stacked."""

    def __init__(self) -> None:
        super().__init__()
        nets = [nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(3)]
        stacked, _ = stack_module_state(nets)
        self.names = list(stacked)
        self.stacked = nn.ParameterList(nn.Parameter(v.detach()) for v in stacked.values())
        self.skeleton = [nets[0].to("meta")]

    def forward(self, x: Tensor) -> Any:
        def one(parameters: dict[str, Tensor]) -> Any:
            return functional_call(self.skeleton[0], parameters, (x,))

        return torch.vmap(one)(dict(zip(self.names, self.stacked, strict=True)))


class Packed(nn.Module):
    """A recurrent network on packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        padded, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(padded)


class Cells(nn.Module):
    """Recurrent cells in a loop over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRUCell(8, 16), nn.LSTMCell(16, 16)

    def forward(self, x: Tensor) -> Any:
        h = x.new_zeros(x.shape[0], 16)
        state = (h, h)
        for step in x.unbind(1):
            h = self.gru(step, h)
            state = self.lstm(h, state)
        return state[0]


class Checkpointed(nn.Module):
    """Activation checkpointing around a block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.block, x, use_reentrant=False)


class BesideScript(nn.Module):
    """A ScriptModule with siblings that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(16, 16), nn.Linear(16, 4)
        self.script = torch.jit.script(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Any:
        return self.after(self.script(self.before(x).relu()))


class Hyper(nn.Module):
    """A network that computes another's weights from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(16, 16 * 4)

    def forward(self, x: Tensor) -> Any:
        return torch.bmm(x, self.make(x.mean(1)).view(-1, 16, 4))


class Branches(nn.Module):
    """A branch on the data, and one on the size."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Any:
        x = self.small(x) if x.shape[1] < 6 else self.large(x)
        return -self.large(x) if x.sum() > 0 else self.small(x)


class Autocast(nn.Module):
    """Half precision inside, and a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.frozen(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = self.body(x)
        return self.head(y.float())


class Twice(nn.Module):
    """One layer called twice, and one weight shared by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(self.first(x).relu()))


class Quantised(nn.Module):
    """A model that is prepared for quantisation: stubs around it."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.conv = nn.Conv2d(3, 8, 3)
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.conv(self.quant(x)).relu())

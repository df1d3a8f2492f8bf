"""Oddities: every layer of torch.nn that multiplies, and unusual ways to use a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks.coverage.case import Call, Case, Inputs, images, integers, normal, tensors
from benchmarks.coverage.libraries import oddity_models as models

SEQUENCE = tensors(5, 16, other=(7, 16))
SHORT = tensors(5, 8, other=(7, 8))
IMAGE = images(12, other=16)


def _packed(batch: int, changed: bool) -> Call:
    length = 7 if changed else 5
    lengths = torch.arange(batch) % (length - 1) + 1
    lengths[-1] = length
    return (normal(batch, length, 8), lengths), {}


def _tokens(batch: int, changed: bool) -> Call:
    return (integers(50, batch, 9 if changed else 6),), {}


def _pair(batch: int, changed: bool) -> Call:
    return (normal(batch, 8), normal(batch, 16)), {}


def _attention(batch: int, changed: bool) -> Call:
    x = normal(batch, 7 if changed else 5, 16)
    return (x, x, x), {}


def _attention_with_mask(batch: int, changed: bool) -> Call:
    x = normal(batch, 7 if changed else 5, 16)
    mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
    return (x, x, x), {"attn_mask": mask, "need_weights": False}


def _keys(batch: int, changed: bool) -> Call:
    length = 7 if changed else 5
    return (normal(batch, 4, 16), normal(batch, length, 12), normal(batch, length, 10)), {}


def _both(batch: int, changed: bool) -> Call:
    return (normal(batch, 7 if changed else 5, 16), normal(batch, 4, 16)), {}


def _half(module: nn.Module) -> nn.Module:
    return module.to(torch.bfloat16)


def _half_sequence(batch: int, changed: bool) -> Call:
    return (SEQUENCE(batch, changed)[0][0].to(torch.bfloat16),), {}


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))


_encoder: dict[str, Any] = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "batch_first": True}
_norm = parametrizations.weight_norm
_spectral = parametrizations.spectral_norm

CASES: dict[str, tuple[Callable[[], nn.Module], Inputs] | tuple[Any, Inputs, dict[str, Any]]] = {
    "Conv1d": (lambda: nn.Conv1d(16, 8, 3), tensors(16, 20, other=(16, 30))),
    "Conv2d": (lambda: nn.Conv2d(3, 8, 3, stride=2, dilation=2), IMAGE),
    "Conv2d, reflected": (lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), IMAGE),
    "Conv2d, same": (lambda: nn.Conv2d(3, 8, (3, 4), padding="same"), IMAGE),
    "Conv2d, depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), IMAGE),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 3), tensors(2, 6, 6, 6, other=(2, 8, 7, 6))),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(16, 8, 3, 2), tensors(16, 9, other=(16, 5))),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 6, 3, 2, groups=3), IMAGE),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 4, 2), tensors(2, 5, 5, 5)),
    "Linear": (_mlp, SEQUENCE),
    "Linear, lazy": (
        lambda: nn.Sequential(nn.LazyLinear(8)), SEQUENCE, {"refused": "lazy parameters"}
    ),
    "Bilinear": (lambda: nn.Bilinear(8, 16, 4), _pair),
    "AdaptiveLogSoftmax": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30]),
        lambda batch, _: ((normal(batch, 16), integers(60, batch)), {}),
        {"batch": 8},
    ),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(16, 2, batch_first=True), _attention),
    "MultiheadAttention, bias": (
        lambda: nn.MultiheadAttention(16, 2, 0.1, True, True, add_zero_attn=True, batch_first=True),
        _attention,
    ),
    "MultiheadAttention, causal": (
        lambda: nn.MultiheadAttention(16, 2, batch_first=True), _attention_with_mask
    ),
    "MultiheadAttention, kdim": (
        lambda: nn.MultiheadAttention(16, 2, kdim=12, vdim=10, batch_first=True), _keys
    ),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(**_encoder), SEQUENCE),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**_encoder), 2), SEQUENCE
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**_encoder), 2), _both
    ),
    "Transformer": (
        lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True, norm_first=True), _both
    ),
    "RNN": (lambda: nn.RNN(8, 16, batch_first=True, nonlinearity="relu"), SHORT),
    "LSTM": (lambda: nn.LSTM(8, 16, 2, batch_first=True, dropout=0.2), SHORT),
    "LSTM, projected": (lambda: nn.LSTM(8, 16, proj_size=4, batch_first=True), SHORT),
    "GRU, both ways": (lambda: nn.GRU(8, 16, bidirectional=True, batch_first=True), SHORT),
    "LSTM, packed": (models.Packed, _packed),
    "cells": (models.Cells, SHORT),
    "weight_norm": (lambda: nn.Sequential(_norm(nn.Conv2d(3, 8, 3)), nn.ReLU()), IMAGE),
    "weight_norm, linear": (lambda: nn.Sequential(_norm(nn.Linear(16, 8)), _mlp_8()), SEQUENCE),
    "weight_norm, transposed": (lambda: nn.Sequential(_norm(nn.ConvTranspose2d(3, 4, 3))), IMAGE),
    "spectral_norm": (lambda: nn.Sequential(_spectral(nn.Conv2d(3, 8, 3)), nn.ReLU()), IMAGE),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(16, 16))), SEQUENCE),
    "standardised": (lambda: nn.Sequential(models.StandardisedConv(3, 8, 3), nn.ReLU()), IMAGE),
    "Conv1D": (lambda: nn.Sequential(models.Conv1D(16, 32), models.Conv1D(32, 16)), SEQUENCE),
    "einsum": (lambda: models.Product("einsum", 8, 16), SEQUENCE),
    "einsum of heads": (lambda: models.Product("einsum of heads", 2, 16, 8), SEQUENCE),
    "matmul": (lambda: models.Product("matmul", 8, 16), SEQUENCE),
    "matmul, left": (lambda: models.Product("left", 8, 16), SEQUENCE),
    "tensordot": (lambda: models.Product("tensordot", 16, 8), SEQUENCE),
    "baddbmm": (lambda: models.Product("baddbmm", 16, 8), SEQUENCE),
    "conv1d": (lambda: models.Product("conv", 8, 16, 3), SEQUENCE),
    "ParameterList": (models.Lists, SEQUENCE),
    "experts, dense": (lambda: models.Experts(routed=False), SEQUENCE),
    "experts, routed": (lambda: models.Experts(routed=True), SEQUENCE),
    "tied embedding": (models.Tied, _tokens),
    "tied embedding, projection": (models.Tied, _tokens, {"options": {"include_tied": True}}),
    "shared": (models.Twice, SEQUENCE),
    "ensemble": (models.Ensemble, tensors(8)),
    "checkpointed": (models.Checkpointed, SEQUENCE),
    "beside a ScriptModule": (models.BesideScript, SEQUENCE),
    "ScriptModule": (
        lambda: torch.jit.script(_mlp()), SEQUENCE, {"refused": "inside a ScriptModule"}
    ),
    "hypernetwork": (models.Hyper, SEQUENCE),
    "branches": (models.Branches, SEQUENCE),
    "autocast": (models.Autocast, SEQUENCE),
    "bfloat16": (lambda: _half(_mlp()), _half_sequence),
    "quantisation stubs": (models.Quantised, IMAGE),
    "no weight": (lambda: nn.Sequential(nn.ReLU()), SEQUENCE, {"refused": "no parameter"}),
    "DataParallel": (lambda: nn.DataParallel(_mlp()), SEQUENCE, {"refused": "wraps a model"}),
    "compiled": (lambda: torch.compile(_mlp()), SEQUENCE, {"refused": "wraps a model"}),
}  # fmt: skip
"""Name -> what builds it, its inputs, and more of its :class:`Case`."""


def _mlp_8() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(8, 4))


def names() -> list[str]:
    """All oddities."""
    return list(CASES)


def case(name: str) -> Case:
    """One oddity."""
    build, inputs, *more = CASES[name]
    return Case(name, build, inputs, **(more[0] if more else {}))

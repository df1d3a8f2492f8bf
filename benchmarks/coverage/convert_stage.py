"""Stage *convert*: parity, share reached, keys and fold of one model."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

import st3fx
from benchmarks.coverage.case import Case
from benchmarks.coverage.checks import Checks, evaluate, same, same_eval, same_training
from benchmarks.coverage.layers import set_layer_sparsity
from benchmarks.coverage.reached import reached

SPARSITY = 0.8


def run(case: Case) -> dict[str, Any]:
    """All checks of one model; a row as JSON values."""
    torch.manual_seed(0)
    original = case.build()
    call = case.inputs(case.batch, False)
    began = time.perf_counter()
    try:
        model, sparsifier = st3fx.convert(
            original, call[0], st3fx.ST3(SPARSITY), example_kwargs=call[1], **case.options
        )
    except st3fx.St3fxError as error:
        return _refused(case, error)
    seconds = time.perf_counter() - began
    plan = sparsifier.plan
    share = reached(original, plan)
    keys = list(original.state_dict())
    checks: Checks = {
        "keys": [key for key in model.state_dict() if "st3fx" not in key] == keys,
        **_parity(case, original, model),
        **_fold(case, original, model, sparsifier),
    }
    return {
        "ok": not case.refused and not share.missing and False not in checks.values(),
        "one_island": [island.name for island in plan.islands] == [""],
        "islands": len(plan.islands),
        "opaque": len(plan.opaque),
        "sites": len(plan.sites),
        "sparse": share.sparse,
        "prunable": share.total,
        "tied": share.tied,
        "inputs": share.inputs,
        "unused": share.unused,
        "missing": list(share.missing),
        "skipped": [f"{item.name}: {item.reason}" for item in plan.skipped],
        "stopped": plan.opaque[0].reason if plan.opaque else "",
        "checks": checks,
        "seconds": round(seconds, 2),
    }


def _refused(case: Case, error: Exception) -> dict[str, Any]:
    expected = bool(case.refused) and case.refused in str(error)
    return {"ok": expected, "refused": str(error).splitlines()[0]}


def _parity(case: Case, original: nn.Module, model: nn.Module) -> Checks:
    """Before the first threshold, against the original."""
    call = case.inputs(case.batch, False)
    return {
        "train, seed 0": same_training(original, model, call, 0),
        "train, seed 1": same_training(original, model, call, 1),
        "eval": same_eval(original, model, call),
        "batch + 1": same_eval(original, model, case.inputs(case.batch + 1, False)),
        "other size": same_eval(original, model, case.inputs(case.batch, True)),
    }


def _fold(
    case: Case, original: nn.Module, model: nn.Module, sparsifier: st3fx.Sparsifier
) -> Checks:
    """At 80 % sparsity, against the folded model: the effective weights and no others are used."""
    calls = {
        "sparse": case.inputs(case.batch, False),
        "sparse, batch + 1": case.inputs(case.batch + 1, False),
        "sparse, other size": case.inputs(case.batch, True),
    }
    sparsifier.set_sparsity(SPARSITY)
    pruned = sum(int((w == 0).sum()) for w in sparsifier.effective_weights().values())
    zeros = sum(set_layer_sparsity(model, sparsifier, SPARSITY).values())
    folded = st3fx.fold(model)
    replaced = any(site.computed for site in sparsifier.plan.sites)
    untied = any(site.tied for site in sparsifier.plan.sites)
    checks: Checks = {name: same_eval(folded, model, call) for name, call in calls.items()}
    state = folded.state_dict()
    checks["fold zeros"] = zeros <= sum(int((p == 0).sum()) for p in folded.parameters())
    checks["sparsity"] = pruned >= int(SPARSITY * sparsifier.plan.numel) - 1
    checks["fold class"] = None if replaced else type(folded) is type(original)
    checks["fold keys"] = None if replaced else list(state) == list(original.state_dict())
    checks["fresh"] = None if replaced or untied else _fresh(case, folded)
    return checks


def _fresh(case: Case, folded: nn.Module) -> bool | None:
    """Whether a fresh model of the user's class computes the same from the folded state dict."""
    call = case.inputs(case.batch, False)
    fresh = case.build()
    fresh.load_state_dict(folded.state_dict(), strict=True)
    try:
        wanted = evaluate(folded, call)
    except Exception:  # noqa: BLE001 - some models take other inputs in eval mode
        return None
    return same(wanted, evaluate(fresh, call))

"""Adapters: the small factors that are trained beside a frozen layer, as LoRA's A and B.

They are dense by design and a few percent of the layer; pruned by one threshold with it they would
vanish. PEFT says of each of its layers which attributes are an adapter's; others name them alike.
"""

from __future__ import annotations

import re

from torch import nn

REASON = "an adapter's own factor: stays dense unless include= has a selector for such alone"

_NAMED = re.compile(r"lora_?(embedding_)?([a-z]|down|up|mid|left|right)", re.IGNORECASE)


def adapter_factors(model: nn.Module) -> set[str]:
    """Full names, all of them, of parameters that belong to adapters."""
    inside = {
        f"{path}.{attribute}" if path else attribute
        for path, module in model.named_modules(remove_duplicate=False)
        for attribute in getattr(type(module), "adapter_layer_names", ())
    }
    return {
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if any(_NAMED.fullmatch(part) for part in name.split("."))
        or any(name == place or name.startswith(f"{place}.") for place in inside)
    }

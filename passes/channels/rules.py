"""The table from ATen operator to rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from st3fx.passes.channels import elementwise, layout, padding, products, reshape, spatial
from st3fx.passes.channels.call import Call

Rule = Callable[[Call], Any]
"""Gives a fact, a tuple of them for several results, or ``None`` where it has to give up."""


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.COPIES, elementwise.copy),
    **dict.fromkeys(elementwise.BINARY, elementwise.binary),
    "prelu": elementwise.prelu,
    "_native_batch_norm_legit_no_training": elementwise.batch_norm,
    **_all("conv1d conv2d conv3d convolution", products.conv),
    **_all("conv_transpose1d conv_transpose2d conv_transpose3d", products.conv),
    "linear": products.linear,
    **_all("mm bmm matmul addmm", products.matmul),
    "scaled_dot_product_attention": products.attention,
    "embedding": products.embedding,
    **_all("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", spatial.pool),
    **_all("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", spatial.pool),
    **_all("_adaptive_avg_pool2d _adaptive_avg_pool3d", spatial.pool),
    **_all("upsample_nearest2d upsample_bilinear2d _upsample_nearest_exact2d", spatial.pool),
    **_all("mean amax amin sum", spatial.reduce),
    **_all("softmax _softmax log_softmax _log_softmax cumsum", spatial.over_dims),
    "layer_norm": spatial.layer_norm,
    "roll": spatial.roll,
    "sym_size": spatial.size,
    "permute": layout.permute,
    **_all("transpose t", layout.transpose),
    "unsqueeze": layout.unsqueeze,
    "squeeze": layout.squeeze,
    "cat": layout.cat,
    "slice": layout.slice_,
    "select": layout.select,
    "index_select": layout.index_select,
    **_all("split split_with_sizes chunk", layout.split),
    **_all("pad constant_pad_nd", padding.pad),
    **_all("view reshape _unsafe_view", reshape.view),
    "expand": reshape.expand,
    "pixel_shuffle": reshape.pixel_shuffle,
}
"""By name; an operator without a rule needs all channels that it reads."""

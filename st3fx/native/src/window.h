// Windows of convolutions and pools: attributes of a node, and what they mean on an image.
#pragma once

#include "layout.h"
#include "ort.h"

namespace st3fx {

struct WindowAttributes {
  Shape kernel, strides, dilations, pads;
  bool ceil_mode = false;
  /// Whether images may be smaller than the window: of a pool, which leaves out what is not there
  /// (but not of an average that counts it: ONNX Runtime does so or not, by the opset).
  bool may_exceed = false;

  /// Reads kernel_shape, strides, dilations, pads and ceil_mode.
  static WindowAttributes of(const NodeInfo& node);

  int64_t taps() const { return kernel[0] * kernel[1]; }

  /// Pixels that an average at that output divides by; `with_padding`: those of the padding too.
  int64_t counted(const Window& window, int64_t row, int64_t column, bool with_padding) const;

  /// The window on images of that size; an error where it does not fit into one.
  Window on(const Plane& plane) const;
};

/// Whether each output position reads the input at the same position, and nothing else.
bool is_identity(const Window& window);

Activation activation_of(const NodeInfo& node);

}  // namespace st3fx

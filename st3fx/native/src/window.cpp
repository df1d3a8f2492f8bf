#include "window.h"

#include <limits>

namespace st3fx {
namespace {

constexpr int64_t kLargest = 1 << 20;  // keeps products of sizes far from overflow

void check_range(const char* name, const Shape& values, int64_t least) {
  for (int64_t value : values)
    if (value < least || value > kLargest)
      throw Error(std::string("attribute '") + name + "' is out of range: " + to_string(values));
}

int64_t outputs(int64_t size, int64_t before, int64_t after, int64_t reach, int64_t stride,
                const WindowAttributes& about) {
  const int64_t room = size + before + after - reach;
  if (room < 0 && !about.may_exceed) return 0;
  // Less than a stride too small there is one window, as ONNX Runtime and its rounding to zero
  // have it.
  int64_t number = room / stride + 1;
  // A window that would begin in the padding behind the image is left out, as ONNX has it.
  if (about.ceil_mode && room > 0 && room % stride && number * stride < size + before) ++number;
  return number;
}

}  // namespace

WindowAttributes WindowAttributes::of(const NodeInfo& node) {
  WindowAttributes window;
  window.kernel = node.integers("kernel_shape", {});
  if (window.kernel.size() != 2) throw Error("attribute 'kernel_shape' needs two numbers");
  window.strides = node.integers("strides", {1, 1});
  window.dilations = node.integers("dilations", {1, 1});
  window.pads = node.integers("pads", {0, 0, 0, 0});
  window.ceil_mode = node.integer("ceil_mode", 0) != 0;
  check_range("kernel_shape", window.kernel, 1);
  check_range("strides", window.strides, 1);
  check_range("dilations", window.dilations, 1);
  check_range("pads", window.pads, 0);
  return window;
}

Window WindowAttributes::on(const Plane& plane) const {
  const int64_t reach_height = (kernel[0] - 1) * dilations[0] + 1;
  const int64_t reach_width = (kernel[1] - 1) * dilations[1] + 1;
  Window window{kernel[0], kernel[1], strides[0], strides[1], dilations[0], dilations[1],
                pads[0], pads[1], plane.height, plane.width, 0, 0};
  window.out_height = outputs(plane.height, pads[0], pads[2], reach_height, strides[0], *this);
  window.out_width = outputs(plane.width, pads[1], pads[3], reach_width, strides[1], *this);
  if (window.out_height < 1 || window.out_width < 1)
    throw Error("images of " + std::to_string(plane.height) + "x" + std::to_string(plane.width) +
                " are smaller than the kernel " + to_string(kernel));
  return window;
}

int64_t WindowAttributes::counted(const Window& w, int64_t row, int64_t column,
                                  bool with_padding) const {
  auto inside = [](int64_t begin, int64_t taps, int64_t dilation, int64_t low, int64_t high) {
    int64_t number = 0;
    for (int64_t i = 0; i < taps; ++i) {
      const int64_t at = begin + i * dilation;
      number += at >= low && at < high;
    }
    return number;
  };
  const int64_t top = row * w.stride_height - w.pad_top;
  const int64_t left = column * w.stride_width - w.pad_left;
  const int64_t bottom = w.height + (with_padding ? pads[2] : 0);
  const int64_t right = w.width + (with_padding ? pads[3] : 0);
  const int64_t number = inside(top, kernel[0], dilations[0], with_padding ? -pads[0] : 0, bottom) *
                         inside(left, kernel[1], dilations[1], with_padding ? -pads[1] : 0, right);
  return std::max<int64_t>(number, 1);
}

bool is_identity(const Window& w) {
  return w.kernel_height == 1 && w.kernel_width == 1 && w.stride_height == 1 &&
         w.stride_width == 1 && w.pad_top == 0 && w.pad_left == 0 && w.out_width == w.width &&
         w.out_height == w.height;
}

Activation activation_of(const NodeInfo& node) {
  const std::string name = node.text("activation", "none");
  if (name == "none") return {};
  if (name == "relu") return {Activation::clip, 0, std::numeric_limits<float>::infinity()};
  if (name == "clip")
    return {Activation::clip, node.number("minimum", 0), node.number("maximum", 6)};
  if (name == "silu") return {Activation::silu, 0, 0};
  if (name == "hard_swish") return {Activation::hard_swish, 0, 0};
  throw Error("activation '" + name + "' is none of none, relu, clip, silu, hard_swish");
}

}  // namespace st3fx

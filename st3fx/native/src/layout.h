// The two layouts of image tensors, as runtime/ops.md specifies them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels.h"
#include "ort.h"

namespace st3fx {

enum class Layout { nchw, blocked };

constexpr int64_t kLanes = 16;  ///< Tiles are as wide as a multiple of this many positions.
constexpr int64_t kTile = 112;  ///< Positions of a full tile: seven vectors of AVX-512.

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

/// The positions of one image, `height · width` of them, and how they are cut into tiles.
struct Plane {
  int64_t height = 0, width = 0;

  int64_t positions() const { return height * width; }
  int64_t padded() const { return round_up(positions(), kLanes); }
  int64_t tiles() const { return (positions() + kTile - 1) / kTile; }
  /// Positions that tile `t` has room for.
  int64_t tile_width(int64_t t) const { return std::min(kTile, padded() - t * kTile); }
  /// Positions of tile `t` that lie in the image.
  int64_t tile_valid(int64_t t) const { return std::min(kTile, positions() - t * kTile); }
};

/// Channels that a blocked tensor is declared with, so that it has room for `channels`.
inline int64_t storage_channels(int64_t channels, const Plane& plane) {
  const int64_t positions = plane.positions();
  if (positions == 0) return channels;
  int64_t storage = (channels * plane.padded() + positions - 1) / positions;
  while (storage * positions % kLanes) ++storage;
  return storage;
}

/// A batch of images in memory.
struct Images {
  Layout layout = Layout::nchw;
  int64_t batch = 0, channels = 0;
  Plane plane;

  /// Channels of the tensor's shape.
  int64_t declared_channels() const {
    return layout == Layout::nchw ? channels : storage_channels(channels, plane);
  }
  /// So many of them.
  Images of_batch(int64_t number) const { return {layout, number, channels, plane}; }
  Shape shape() const { return {batch, declared_channels(), plane.height, plane.width}; }
  /// Floats of one image, its padding included.
  int64_t image_size() const { return declared_channels() * plane.positions(); }

  /// Distance of two channels at the same position of tile `t`.
  int64_t channel_stride(int64_t t) const {
    return layout == Layout::nchw ? plane.positions() : plane.tile_width(t);
  }
  /// Where tile `t` of channel `c` begins in its image.
  int64_t offset_in_image(int64_t c, int64_t t) const {
    return t * kTile * (layout == Layout::nchw ? 1 : channels) + c * channel_stride(t);
  }
  /// Where tile `t` of channel 0 of image `n` begins.
  int64_t tile_offset(int64_t n, int64_t t) const {
    return n * image_size() + offset_in_image(0, t);
  }
  /// Where position `p` of channel `c` of image `n` lies.
  int64_t index(int64_t n, int64_t c, int64_t p) const {
    return n * image_size() + offset_in_image(c, p / kTile) + p % kTile;
  }
};

/// The layout of that name.
Layout parse_layout(const std::string& name);

/// What a tensor of this shape holds; an error where the shape does not fit the layout.
Images images_of(const Tensor& tensor, Layout layout, int64_t channels);

/// The tensor, which must have the shape of these images.
const Tensor& same_shape(const Tensor& tensor, const Images& images);

/// A constant input of that many numbers, zeros if there is none.
std::vector<float> read_bias(const NodeInfo& node, size_t input, int64_t outputs);

}  // namespace st3fx

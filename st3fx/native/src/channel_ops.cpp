#include "channel_ops.h"

#include <algorithm>
#include <numeric>

#include "parallel_ranges.h"
#include "scalar.h"
#include "window.h"

namespace st3fx {
namespace {

Layout layout_attribute(const NodeInfo& node, const char* name) {
  return parse_layout(node.text(name, "nchw"));
}

}  // namespace

GlobalAveragePool::GlobalAveragePool(const NodeInfo& node)
    : kernels_(kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      layout_(layout_attribute(node, "input_layout")) {}

void GlobalAveragePool::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  const Images in = images_of(x, layout_, channels_);
  const float positions = static_cast<float>(in.plane.positions());
  const int64_t image_size = in.image_size();
  float* y = run.output({in.batch, channels_, 1, 1});
  auto sum = [&](const float* from, int64_t n) {
    return kernels_ ? static_cast<double>(kernels_->sum(from, n))
                    : std::accumulate(from, from + n, 0.0);
  };
  parallel_ranges(run, in.batch * channels_, in.plane.positions(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* image = x.floats() + i / channels_ * image_size;
      double total = 0;
      for (int64_t t = 0; t < in.plane.tiles(); ++t)
        total += sum(image + in.offset_in_image(i % channels_, t), in.plane.tile_valid(t));
      y[i] = static_cast<float>(total / positions);
    }
  });
}

Add::Add(const NodeInfo& node)
    : kernels_(kernels_of(current_isa())), activation_(activation_of(node)) {}

void Add::operator()(const Run& run) const {
  const Tensor a = run.input(0), b = run.input(1);
  if (a.shape != b.shape)
    throw Error("operands of shapes " + to_string(a.shape) + " and " + to_string(b.shape));
  float* y = run.output(a.shape);
  parallel_ranges(run, count(a.shape), 1, [&](int64_t begin, int64_t end) {
    if (kernels_)
      return kernels_->add(a.floats() + begin, b.floats() + begin, y + begin, end - begin,
                           activation_);
    for (int64_t i = begin; i < end; ++i)
      y[i] = static_cast<float>(
          scalar::activate(static_cast<double>(a.floats()[i]) + b.floats()[i], activation_));
  });
}

ChannelScale::ChannelScale(const NodeInfo& node)
    : kernels_(kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      layout_(layout_attribute(node, "layout")) {}

void ChannelScale::operator()(const Run& run) const {
  const Tensor x = run.input(0), factors = run.input(1);
  const Images images = images_of(x, layout_, channels_);
  same_shape(factors, {Layout::nchw, images.batch, channels_, {1, 1}});
  float* y = run.output(x.shape);
  const int64_t total = images.batch * channels_, image_size = images.image_size();
  parallel_ranges(run, total, images.plane.padded(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t t = 0; t < images.plane.tiles(); ++t) {
        const int64_t at = i / channels_ * image_size + images.offset_in_image(i % channels_, t);
        const int64_t n =
            layout_ == Layout::nchw ? images.plane.tile_valid(t) : images.plane.tile_width(t);
        const float factor = factors.floats()[i];
        if (kernels_) {
          kernels_->scale(x.floats() + at, factor, y + at, n);
        } else {
          for (int64_t j = at; j < at + n; ++j) y[j] = x.floats()[j] * factor;
        }
      }
    }
  });
}

Concat::Concat(const NodeInfo& node)
    : channels_(node.integers("channels", {})), layout_(layout_attribute(node, "layout")) {
  if (channels_.empty() || channels_.size() > node.input_count())
    throw Error("attribute 'channels' needs one number for each input");
  for (int64_t channels : channels_)
    if (channels < 1 || channels > (1 << 24))
      throw Error("attribute 'channels' is out of range: " + to_string(channels_));
}

void Concat::operator()(const Run& run) const {
  // Where a tool has put a function's body in its place, inputs that are left out may stand behind.
  for (size_t i = channels_.size(); i < run.input_count(); ++i)
    if (run.optional_input(i)) throw Error("attribute 'channels' needs one number for each input");
  std::vector<Tensor> tensors;
  std::vector<Images> parts;
  for (size_t i = 0; i < channels_.size(); ++i) {
    tensors.push_back(run.input(i));
    parts.push_back(images_of(tensors[i], layout_, channels_[i]));
    Images expected = parts[0];
    expected.channels = channels_[i];
    same_shape(tensors[i], expected);
  }
  Images out = parts[0];
  out.channels = std::accumulate(channels_.begin(), channels_.end(), int64_t{0});
  float* y = run.output(out.shape());
  // Channels of one tile are side by side; in the plain layout a whole image is one tile.
  const bool cut = layout_ == Layout::blocked;
  const int64_t tiles = cut ? out.plane.tiles() : 1;
  parallel_ranges(run, out.batch * tiles, out.channels * kTile, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / tiles, t = i % tiles;
      float* to = y + out.tile_offset(n, t);
      for (size_t j = 0; j < parts.size(); ++j) {
        const int64_t floats = parts[j].channels * parts[j].channel_stride(t);
        to = std::copy_n(tensors[j].floats() + parts[j].tile_offset(n, t), floats, to);
      }
    }
  });
}

ChangeLayout::ChangeLayout(const NodeInfo& node)
    : channels_(node.required_integer("channels")),
      from_(layout_attribute(node, "input_layout")),
      to_(layout_attribute(node, "output_layout")) {}

void ChangeLayout::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  const Images in = images_of(x, from_, channels_);
  Images out = in;
  out.layout = to_;
  float* y = run.output(out.shape());
  const int64_t tiles = in.plane.tiles();
  parallel_ranges(run, in.batch * tiles, channels_ * kTile, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / tiles, t = i % tiles;
      const int64_t valid = in.plane.tile_valid(t);
      const int64_t room = to_ == Layout::blocked ? in.plane.tile_width(t) : valid;
      const float* from = x.floats() + in.tile_offset(n, t);
      float* to = y + out.tile_offset(n, t);
      for (int64_t c = 0; c < channels_; ++c) {
        std::copy_n(from, valid, to);
        std::fill(to + valid, to + room, 0.0F);
        from += in.channel_stride(t);
        to += out.channel_stride(t);
      }
    }
  });
}

}  // namespace st3fx

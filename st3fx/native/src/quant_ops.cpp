#include "quant_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "parallel_ranges.h"

namespace st3fx {
namespace {

constexpr int64_t kMostChannels = 1 << 24;

uint8_t* bytes(float* quads) { return reinterpret_cast<uint8_t*>(quads); }
const uint8_t* bytes(const float* quads) { return reinterpret_cast<const uint8_t*>(quads); }

/// n bytes through a table, every step-th.
void look_up(const uint8_t* table, const uint8_t* from, uint8_t* to, int64_t n, int64_t step) {
  for (int64_t i = 0; i < n; ++i) to[step * i] = table[from[step * i]];
}

const uint8_t* bytes(const Tensor& tensor) { return static_cast<const uint8_t*>(tensor.data); }

const Tensor& of_bytes(const Tensor& tensor) {
  if (tensor.type != ort::kUint8) throw Error("operand is not uint8");
  return tensor;
}

float positive_attribute(const NodeInfo& node, const char* name) {
  const float value = finite_attribute(node, name);
  if (!(value > 0)) throw Error(std::string("attribute '") + name + "' is not positive");
  return value;
}

/// Calls `run_tile(n, quad, tile)` for every tile of every quad.
template <class RunTile>
void for_tiles(const Run& run, const Images& quads, const RunTile& run_tile) {
  const int64_t tiles = quads.plane.tiles(), total = quads.batch * quads.channels * tiles;
  parallel_ranges(run, total, kTile, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      run_tile(i / (tiles * quads.channels), i / tiles % quads.channels, i % tiles);
  });
}

/// Images [N, C, H, W] in numbers of ONNX, and as quads.
Images plain_images(const Tensor& tensor, int64_t channels) {
  if (tensor.shape.size() != 4 || tensor.shape[1] != channels)
    throw Error("input of shape " + to_string(tensor.shape) + " is no batch of images of " +
                std::to_string(channels) + " channels");
  return {Layout::blocked, tensor.shape[0], (channels + 3) / 4, {tensor.shape[2], tensor.shape[3]}};
}

Shape plain_shape(const Images& quads, int64_t channels) {
  return {quads.batch, channels, quads.plane.height, quads.plane.width};
}

}  // namespace

QuantAdd::QuantAdd(const NodeInfo& node) : kernels_(quant_kernels_of(current_isa())) {
  how_.sum_factor = finite_attribute(node, "a_factor");
  how_.residual_factor = finite_attribute(node, "b_factor");
  how_.offset = finite_attribute(node, "offset");
  how_.sum_minimum = byte_attribute(node, "minimum", 0);
  how_.sum_maximum = byte_attribute(node, "maximum", 255);
  require_range(how_.sum_minimum, how_.sum_maximum, "");
}

void QuantAdd::operator()(const Run& run) const {
  const Tensor a = of_bytes(run.input(0)), b = of_bytes(run.input(1));
  if (a.shape != b.shape)
    throw Error("operands of shapes " + to_string(a.shape) + " and " + to_string(b.shape));
  uint8_t* y = bytes(run.output(a.shape));
  parallel_ranges(run, count(a.shape), 1, [&](int64_t begin, int64_t end) {
    kernels_.add(bytes(a) + begin, bytes(b) + begin, y + begin, end - begin, how_);
  });
}

QuantLookup::QuantLookup(const NodeInfo& node) {
  const Tensor table = node.constant(1, "table", ort::kUint8);
  if (table.shape != Shape{256}) throw Error("table of shape " + to_string(table.shape));
  std::copy_n(bytes(table), 256, table_.begin());
}

void QuantLookup::operator()(const Run& run) const {
  const Tensor x = of_bytes(run.input(0));
  uint8_t* y = bytes(run.output(x.shape));
  parallel_ranges(run, count(x.shape), 1, [&](int64_t begin, int64_t end) {
    look_up(table_.data(), bytes(x) + begin, y + begin, end - begin, 1);
  });
}

QuantGlobalAveragePool::QuantGlobalAveragePool(const NodeInfo& node)
    : kernels_(quant_kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      x_zero_point_(byte_attribute(node, "x_zero_point", 0)),
      factor_(positive_attribute(node, "factor")),
      how_(requantize_of(node, false)) {}

void QuantGlobalAveragePool::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  const Images in = quads_of(x, channels_);
  const Images out{Layout::blocked, in.batch, in.channels, {1, 1}};
  if (in.plane.positions() == 0) throw Error("images without pixels have no average");
  float* y = run.output(byte_shape(out));
  const int64_t positions = in.plane.positions();
  const float factor = factor_ / static_cast<float>(positions);
  parallel_ranges(run, in.batch * in.channels, positions, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / in.channels, quad = i % in.channels;
      const float* image = quad_data(x) + n * in.image_size();
      int64_t sums[4] = {};
      for (int64_t t = 0; t < in.plane.tiles(); ++t)
        kernels_.sum_quads(image + in.offset_in_image(quad, t), in.plane.tile_valid(t), sums);
      uint8_t* to = bytes(y + out.index(n, quad, 0));
      for (int c = 0; c < 4; ++c) {
        const float sum = static_cast<float>(sums[c] - positions * x_zero_point_);
        const float value = std::nearbyintf(sum * factor) + static_cast<float>(how_.zero_point);
        to[c] = static_cast<uint8_t>(std::clamp(value, static_cast<float>(how_.minimum),
                                                static_cast<float>(how_.maximum)));
      }
      std::memset(to + 4, 0, 4 * (kLanes - 1));
    }
  });
}

QuantScale::QuantScale(const NodeInfo& node)
    : kernels_(quant_kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      x_zero_point_(byte_attribute(node, "x_zero_point", 0)),
      s_zero_point_(byte_attribute(node, "s_zero_point", 0)),
      factor_(finite_attribute(node, "factor")),
      how_(requantize_of(node, false)) {}

void QuantScale::operator()(const Run& run) const {
  const Tensor x = run.input(0), factors = run.input(1);
  const Images in = quads_of(x, channels_);
  const Images scales{Layout::blocked, in.batch, in.channels, {1, 1}};
  same_bytes(factors, scales);
  float* y = run.output(x.shape);
  for_tiles(run, in, [&](int64_t n, int64_t quad, int64_t t) {
    int32_t factor[4];
    const auto* four =
        reinterpret_cast<const uint8_t*>(quad_data(factors) + scales.index(n, quad, 0));
    for (int c = 0; c < 4; ++c) factor[c] = four[c] - s_zero_point_;
    const int64_t at = n * in.image_size() + in.offset_in_image(quad, t);
    kernels_.scale_quads(quad_data(x) + at, x_zero_point_, factor, factor_, y + at,
                         in.plane.tile_width(t), how_);
  });
}

QuantChannels::QuantChannels(const NodeInfo& node) : channels_(node.integers("channels", {})) {
  if (channels_.empty() || channels_.size() > node.input_count())
    throw Error("attribute 'channels' needs one number for each input");
  std::vector<Source> all;
  for (size_t input = 0; input < channels_.size(); ++input) {
    if (channels_[input] < 1 || channels_[input] > kMostChannels)
      throw Error("attribute 'channels' is out of range: " + to_string(channels_));
    for (int64_t channel = 0; channel < channels_[input]; ++channel) all.push_back({input, channel});
  }
  const Shape sources = node.integers("sources", {});
  if (sources.empty()) sources_ = all;
  for (int64_t source : sources) {
    if (source < 0 || source >= static_cast<int64_t>(all.size()))
      throw Error("attribute 'sources' has " + std::to_string(source) + " of " +
                  std::to_string(all.size()) + " channels");
    sources_.push_back(all[source]);
  }
  const Shape shape{static_cast<int64_t>(channels_.size()), 256};
  if (node.input_count() <= channels_.size()) return;
  const auto tables = node.optional_constant(channels_.size(), "tables", ort::kUint8);
  if (!tables) return;
  if (tables->shape != shape)
    throw Error("tables of shape " + to_string(tables->shape) + ", expected " + to_string(shape));
  tables_.assign(bytes(*tables), bytes(*tables) + count(shape));
}

void QuantChannels::operator()(const Run& run) const {
  for (size_t i = channels_.size() + !tables_.empty(); i < run.input_count(); ++i)
    if (run.optional_input(i)) throw Error("attribute 'channels' needs one number for each input");
  std::vector<Tensor> tensors;
  std::vector<Images> in;
  for (size_t i = 0; i < channels_.size(); ++i) {
    tensors.push_back(run.input(i));
    in.push_back(quads_of(tensors[i], channels_[i]));
    if (in[i].batch != in[0].batch || in[i].plane.height != in[0].plane.height ||
        in[i].plane.width != in[0].plane.width)
      throw Error("inputs of shapes " + to_string(tensors[0].shape) + " and " +
                  to_string(tensors[i].shape));
  }
  const auto channels = static_cast<int64_t>(sources_.size());
  const Images out{Layout::blocked, in[0].batch, (channels + 3) / 4, in[0].plane};
  float* y = run.output(byte_shape(out));
  for_tiles(run, out, [&](int64_t n, int64_t quad, int64_t t) {
    auto place = [&](const Source& source) {
      const Images& images = in[source.input];
      return quad_data(tensors[source.input]) + n * images.image_size() +
             images.offset_in_image(source.channel / 4, t);
    };
    const int64_t width = out.plane.tile_width(t), first = 4 * quad;
    const int64_t there = std::min<int64_t>(4, channels - first);
    float* to = y + n * out.image_size() + out.offset_in_image(quad, t);
    const Source& source = sources_[first];
    bool whole = there == 4 && source.channel % 4 == 0;
    for (int64_t c = 1; c < there && whole; ++c)
      whole = sources_[first + c].input == source.input &&
              sources_[first + c].channel == source.channel + c;
    if (whole) {
      const float* from = place(source);
      if (tables_.empty()) std::copy_n(from, width, to);
      else look_up(&tables_[256 * source.input], bytes(from), bytes(to), 4 * width, 1);
      return;
    }
    for (int64_t c = 0; c < 4; ++c) {
      uint8_t* into = bytes(to) + c;
      if (c >= there) {
        for (int64_t p = 0; p < width; ++p) into[4 * p] = 0;
        continue;
      }
      const Source& one = sources_[first + c];
      const uint8_t* from = bytes(place(one)) + one.channel % 4;
      if (!tables_.empty()) look_up(&tables_[256 * one.input], from, into, width, 4);
      else for (int64_t p = 0; p < width; ++p) into[4 * p] = from[4 * p];
    }
  });
}

QuantizeImage::QuantizeImage(const NodeInfo& node)
    : kernels_(quant_kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      scale_(positive_attribute(node, "scale")),
      zero_point_(byte_attribute(node, "zero_point", 0)) {}

void QuantizeImage::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  if (x.type != ort::kFloat) throw Error("input is not float32");
  const Images out = plain_images(x, channels_);
  float* y = run.output(byte_shape(out));
  const int64_t positions = out.plane.positions();
  for_tiles(run, out, [&](int64_t n, int64_t quad, int64_t t) {
    const int64_t valid = out.plane.tile_valid(t), width = out.plane.tile_width(t);
    uint8_t* to = bytes(y + n * out.image_size() + out.offset_in_image(quad, t));
    uint8_t quantized[4][kTile] = {};
    for (int64_t c = 4 * quad; c < std::min(4 * quad + 4, channels_); ++c)
      kernels_.quantize(x.floats() + (n * channels_ + c) * positions + t * kTile, scale_,
                        zero_point_, quantized[c % 4], valid);
    const uint8_t* four[4] = {quantized[0], quantized[1], quantized[2], quantized[3]};
    kernels_.to_quads(four, to, width);
  });
}

DequantizeImage::DequantizeImage(const NodeInfo& node)
    : kernels_(quant_kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      scale_(positive_attribute(node, "scale")),
      zero_point_(byte_attribute(node, "zero_point", 0)) {}

void DequantizeImage::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  const Images in = quads_of(x, channels_);
  float* y = run.output(plain_shape(in, channels_));
  const int64_t positions = in.plane.positions();
  for_tiles(run, in, [&](int64_t n, int64_t quad, int64_t t) {
    const auto* from = reinterpret_cast<const uint8_t*>(quad_data(x) + n * in.image_size() +
                                                        in.offset_in_image(quad, t));
    for (int64_t c = 4 * quad; c < std::min(4 * quad + 4, channels_); ++c)
      kernels_.dequantize(from + c % 4, scale_, zero_point_,
                          y + (n * channels_ + c) * positions + t * kTile,
                          in.plane.tile_valid(t));
  });
}

QuantLayout::QuantLayout(const NodeInfo& node)
    : kernels_(quant_kernels_of(current_isa())),
      channels_(node.required_integer("channels")) {
  const Layout from = parse_layout(node.text("input_layout", "nchw"));
  to_blocked_ = parse_layout(node.text("output_layout", "nchw")) == Layout::blocked;
  if ((from == Layout::blocked) == to_blocked_)
    throw Error("attributes 'input_layout' and 'output_layout' are the same");
}

void QuantLayout::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  const Images quads = to_blocked_ ? plain_images(x, channels_) : quads_of(x, channels_);
  of_bytes(x);
  const Shape shape = to_blocked_ ? byte_shape(quads) : plain_shape(quads, channels_);
  uint8_t* y = bytes(run.output(shape));
  const int64_t positions = quads.plane.positions();
  for_tiles(run, quads, [&](int64_t n, int64_t quad, int64_t t) {
    const int64_t valid = quads.plane.tile_valid(t), width = quads.plane.tile_width(t);
    const int64_t blocked = 4 * (n * quads.image_size() + quads.offset_in_image(quad, t));
    const int64_t plain = (n * channels_ + 4 * quad) * positions + t * kTile;
    const int64_t there = std::min<int64_t>(4, channels_ - 4 * quad);
    if (to_blocked_) {
      constexpr uint8_t kNone[kTile] = {};
      const uint8_t* four[4];
      for (int64_t c = 0; c < 4; ++c) four[c] = c < there ? bytes(x) + plain + c * positions : kNone;
      kernels_.to_quads(four, y + blocked, valid);
      std::memset(y + blocked + 4 * valid, 0, 4 * (width - valid));
      return;
    }
    for (int64_t c = 0; c < there; ++c)
      for (int64_t p = 0; p < valid; ++p)
        y[plain + c * positions + p] = bytes(x)[blocked + 4 * p + c];
  });
}

}  // namespace st3fx

#include "quant_linear.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "parallel_ranges.h"
#include "quant_conv.h"
#include "scratch.h"
#include "window.h"

namespace st3fx {
namespace {

constexpr int64_t kEnoughTasks = 8;   // with fewer tiles the rows are split too
constexpr int64_t kStagedQuads = 64;  // whose outputs stay in the cache until they are transposed

std::vector<float> in_fours(std::vector<float> values) {
  values.resize((values.size() + 3) / 4 * 4, 0.0F);
  return values;
}

}  // namespace

/// One run: so many vectors, in tiles that are about alike, and how they are quantized.
struct QuantLinear::Call {
  const float* x;
  float* y;
  int64_t vectors, tile;  ///< A tile's are a multiple of 16, at most 112.
  float scale;
  int32_t zero_point;
  std::vector<int32_t> bias;      ///< [4 · quads]
  std::vector<float> multiplier;  ///< [4 · quads]

  int64_t tiles() const { return (vectors + tile - 1) / tile; }
  int64_t valid(int64_t t) const { return std::min(tile, vectors - t * tile); }
  int64_t width(int64_t t) const { return round_up(valid(t), kLanes); }
};

QuantLinear::QuantLinear(const NodeInfo& node)
    : kernels_(quant_kernels_of(current_isa())),
      moves_(moving_kernels(current_isa())),
      features_(node.required_integer("features")),
      rows_(rows_of(node, 3)),
      x_scale_(node.number("x_scale", 0)),
      x_zero_point_(byte_attribute(node, "x_zero_point", 0)),
      activation_(activation_of(node)),
      weight_scale_(in_fours(read_numbers(node, 5, "weight_scale", rows_))),
      bias_(in_fours(read_bias(node, 4, rows_))) {
  if (!std::isfinite(x_scale_) || x_scale_ < 0)
    throw Error("attribute 'x_scale' is out of range: " + std::to_string(x_scale_));
  const std::vector<int32_t> none(rows_, 0);
  const std::vector<float> ones(rows_, 1.0F);
  const int64_t columns = (features_ + 3) / 4;
  // Whatever the zero point will be: the sums of the two outermost ones have room.
  QuadMatrix::of(node, 1, columns, kernels_, x_scale_ > 0 ? x_zero_point_ : 255, none, ones);
  matrix_ = QuadMatrix::of(node, 1, columns, kernels_, 0, none, ones);
  parts_ = cut_quads(matrix_);
  for (size_t i = 0; i < matrix_.column.size(); ++i)
    blocks_.push_back({matrix_.column[i], matrix_.weights[i]});
}

/// A call's scale and zero point: those of the node, or as DynamicQuantizeLinear has them.
QuantLinear::Call QuantLinear::measured(const Run& run, const float* x, int64_t vectors) const {
  const int64_t tiles = (vectors + kTile - 1) / kTile;
  const int64_t tile = round_up((vectors + tiles - 1) / tiles, kLanes);
  Call call{x, nullptr, vectors, tile, x_scale_, x_zero_point_, matrix_.bias, weight_scale_};
  if (x_scale_ == 0) {
    float least = 0, largest = 0;
    std::mutex mutex;
    parallel_ranges(run, vectors * features_, 1, [&](int64_t begin, int64_t end) {
      float low, high;
      kernels_.range(x + begin, end - begin, &low, &high);
      std::lock_guard<std::mutex> lock(mutex);
      least = std::min(least, low);
      largest = std::max(largest, high);
    });
    call.scale = (largest - least) / 255.0F;
    if (!(call.scale > 0) || !std::isfinite(call.scale)) call.scale = 1;
    const float zero = std::nearbyintf(-least / call.scale);
    call.zero_point = static_cast<int32_t>(std::clamp(zero, 0.0F, 255.0F));
  }
  for (size_t row = 0; row < call.bias.size(); ++row) {
    // Modulo 2³², as the sums are.
    const auto shift = static_cast<uint32_t>(call.zero_point) *
                       static_cast<uint32_t>(matrix_.total[row]);
    call.bias[row] = static_cast<int32_t>(static_cast<uint32_t>(call.bias[row]) - shift);
    call.multiplier[row] = call.scale * weight_scale_[row];
  }
  return call;
}

void QuantLinear::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  Shape shape = x.shape;
  if (x.type != ort::kFloat) throw Error("input is not float32");
  if (shape.empty() || shape.back() != features_)
    throw Error("input of shape " + to_string(shape) + " has not " + std::to_string(features_) +
                " features on axis -1");
  const int64_t vectors = count(shape) / features_;
  shape.back() = rows_;
  float* y = run.output(shape);
  if (vectors == 0) return;
  Call call = measured(run, x.floats(), vectors);
  call.y = y;
  const int64_t tiles = call.tiles(), quads = (features_ + 3) / 4;
  const auto parts = static_cast<int64_t>(parts_.size()) - 1;
  const int64_t shares = std::min(parts, (kEnoughTasks + tiles - 1) / tiles);
  const Scratch taps(tiles * quads * call.tile);
  const int64_t pieces = (vectors + kLanes - 1) / kLanes, per_tile = call.tile / kLanes;
  run.parallel_for(pieces, [&](int64_t piece) {
    const int64_t tile = piece / per_tile, begin = piece % per_tile * kLanes;
    pack(call, tile, begin, std::min(begin + kLanes, call.valid(tile)),
         taps.data() + tile * quads * call.tile);
  });
  run.parallel_for(tiles * shares, [&](int64_t task) {
    const int64_t tile = task / shares, share = task % shares;
    const int64_t end = parts_[parts * (share + 1) / shares];
    for (int64_t begin = parts_[parts * share / shares]; begin < end; begin += kStagedQuads)
      run_part(call, tile, begin, std::min(begin + kStagedQuads, end),
               taps.data() + tile * quads * call.tile);
  });
}

/// Vectors [begin, end) of a tile, quantized and side by side.
void QuantLinear::pack(const Call& call, int64_t tile, int64_t begin, int64_t end,
                       float* taps) const {
  const int64_t quads = (features_ + 3) / 4;
  const Scratch rows(kLanes * quads);
  auto* bytes = reinterpret_cast<uint8_t*>(rows.data());
  for (int64_t v = begin; v < end; ++v) {
    uint8_t* to = bytes + (v - begin) * 4 * quads;
    kernels_.quantize(call.x + (tile * call.tile + v) * features_, call.scale, call.zero_point, to,
                      features_);
    std::fill(to + features_, to + 4 * quads, uint8_t{0});
  }
  moves_.transpose(rows.data(), quads, end - begin, quads, taps + begin,
                   call.width(tile));
}

/// Quads [begin, end) of the outputs of a tile.
void QuantLinear::run_part(const Call& call, int64_t tile, int64_t begin, int64_t end,
                           const float* taps) const {
  const int64_t width = call.width(tile);
  const Scratch stage(4 * (end - begin) * width);
  QuantTileJob job{};
  job.blocks = blocks_.data();
  job.row_start = matrix_.row_start.data();
  job.shared = matrix_.shared.data();
  job.quad_begin = begin;
  job.quad_end = end;
  job.taps = taps;
  job.offset_bytes = 4 * width;
  job.width = width;
  job.chunk = chunk_for(kernels_, (features_ + 3) / 4);
  job.bias = call.bias.data();
  job.multiplier = call.multiplier.data();
  job.real_out = stage.data() - 4 * begin * width;
  job.real_bias = bias_.data();
  job.activation = activation_;
  kernels_.sparse_tile(job);
  moves_.transpose(stage.data(), width, std::min(4 * end, rows_) - 4 * begin,
                   call.valid(tile), call.y + tile * call.tile * rows_ + 4 * begin, rows_);
}

}  // namespace st3fx

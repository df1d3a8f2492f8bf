#include "quant_window.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "quant_conv.h"
#include "tile_tasks.h"

namespace st3fx {
namespace {

constexpr int64_t kMostWeights = 1 << 28;   // of averages, which no tensor bounds
constexpr int64_t kBand = 8;  // tiles at a time, so that few rows are packed twice

/// Whether all fours are three positions side by side, and one that has no weight.
bool are_neighbours(const std::vector<uint32_t>& offsets) {
  for (size_t i = 0; i < offsets.size(); i += 4)
    if (offsets[i + 1] != offsets[i] + 1 || offsets[i + 2] != offsets[i] + 2) return false;
  return true;
}

}  // namespace

/// What depends on the size of the images alone.
struct QuantWindowOp::Sized {
  TapPlan taps;
  std::vector<uint32_t> tap_offsets;
  bool threes;                 ///< See `QuantWindowJob`.
  std::vector<float> factors;  ///< Of an average, one for each computed position.

  size_t bytes() const { return taps.bytes() + factors.size() * sizeof(float); }
};

struct QuantWindowOp::Call {
  Images in;
  std::shared_ptr<const Sized> sized;
  const float* x;
  const float* residual;
  float* y;
};

QuantWindowOp::QuantWindowOp(const NodeInfo& node, QuantWindowJob::Kind kind)
    : kernels_(quant_kernels_of(current_isa())),
      moves_(moving_kernels(current_isa())),
      kind_(kind),
      channels_(node.required_integer("channels")),
      quads_((channels_ + 3) / 4),
      window_(WindowAttributes::of(node)),
      sized_(std::make_unique<SizedCache<Sized>>()) {}

void QuantWindowOp::set_weights(const int8_t* weights, const std::vector<int32_t>& bias,
                                const std::vector<float>& multiplier) {
  const int64_t taps = window_.taps(), fours = this->fours();
  bias_.assign(4 * quads_, 0);
  multiplier_.assign(4 * quads_, 0);
  std::vector<std::vector<std::array<int8_t, 4>>> parts;  // of each channel's fours
  for (int64_t c = 0; c < channels_; ++c) {
    WeightSums sums;
    std::vector<std::array<int8_t, 4>> all(fours);
    for (int64_t t = 0; t < taps; ++t) {
      const int8_t weight = weights[c * taps + t];
      all[place_of(t) / 4][place_of(t) % 4] = weight;
      sums.add(weight);
    }
    for (const std::array<int8_t, 4>& four : all) {
      std::vector<std::array<int8_t, 4>> split{four};
      if (kernels_.needs_small_pairs) split = small_pairs(four.data());
      halves_ = std::max(halves_, static_cast<int64_t>(split.size()));
      parts.push_back(std::move(split));
    }
    const int64_t own = static_cast<int64_t>(bias[c]) - x_zero_point_ * sums.total;
    const int64_t most = sums.largest(own, "channel " + std::to_string(c));
    bias_[c] = wrapped(own + kernels_.input_offset * sums.total);
    multiplier_[c] = multiplier[c];
    requantize_.wide |= is_wide(multiplier[c], most);
  }
  weights_.assign(quads_ * halves_ * fours * 16, 0);
  for (int64_t c = 0; c < channels_; ++c)
    for (int64_t i = 0; i < fours; ++i) {
      const auto& split = parts[c * fours + i];
      for (size_t half = 0; half < split.size(); ++half)
        std::memcpy(&weights_[((c / 4 * halves_ + half) * fours + i) * 16 + c % 4 * 4],
                    split[half].data(), 4);
    }
}

QuantDepthwiseConv::QuantDepthwiseConv(const NodeInfo& node)
    : QuantWindowOp(node, QuantWindowJob::sum) {
  const Tensor weight = node.constant(1, "weight", ort::kInt8);
  const Shape expected{channels_, 1, window_.kernel[0], window_.kernel[1]};
  if (weight.shape != expected)
    throw Error("weight of shape " + to_string(weight.shape) + ", expected " + to_string(expected));
  x_zero_point_ = byte_attribute(node, "x_zero_point", 0);
  has_residual_ = node.input_count() > 4;
  requantize_ = requantize_of(node, has_residual_);
  set_weights(static_cast<const int8_t*>(weight.data), read_integers(node, 2, "bias", channels_),
              read_numbers(node, 3, "multiplier", channels_));
}

QuantMaxPool::QuantMaxPool(const NodeInfo& node) : QuantWindowOp(node, QuantWindowJob::largest) {
  window_.may_exceed = true;
}

QuantAveragePool::QuantAveragePool(const NodeInfo& node)
    : QuantWindowOp(node, QuantWindowJob::sum) {
  x_zero_point_ = byte_attribute(node, "x_zero_point", 0);
  average_factor_ = finite_attribute(node, "factor");
  if (!(average_factor_ > 0)) throw Error("attribute 'factor' is not positive");
  count_padding_ = node.integer("count_include_pad", 0) != 0;
  window_.may_exceed = !count_padding_;
  requantize_ = requantize_of(node, false);
  if (window_.taps() > kMostWeights / channels_)
    throw Error("attribute 'kernel_shape' is out of range: " + to_string(window_.kernel) + " for " +
                std::to_string(channels_) + " channels");
  const std::vector<int8_t> ones(channels_ * window_.taps(), 1);
  set_weights(ones.data(), std::vector<int32_t>(channels_, 0),
              std::vector<float>(channels_, average_factor_));
}

QuantWindowOp::Sized QuantWindowOp::work_out(const Images& in) const {
  // An output takes so many times the memory in packed inputs.
  const int64_t band = std::max<int64_t>(kBand / (window_.strides[0] * window_.strides[1]), 1);
  Sized sized{TapPlan(window_, in, Layout::blocked, quads_, band * kTile), {}, false, {}};
  sized.tap_offsets = sized.taps.column_offsets(window_.taps());
  if (kind_ == QuantWindowJob::sum) {
    // What fills up a four has a weight of zero, wherever it is read.
    std::vector<uint32_t> places(4 * fours(), sized.tap_offsets[0]);
    for (int64_t t = 0; t < window_.taps(); ++t) places[place_of(t)] = sized.tap_offsets[t];
    sized.tap_offsets = std::move(places);
    // Shifted by one tap, weights would be other pairs than those that were made small.
    sized.threes =
        has_threes() && !kernels_.needs_small_pairs && are_neighbours(sized.tap_offsets);
  }
  if (average_factor_ == 0) return sized;
  const Window& w = sized.taps.window();
  sized.factors.assign(round_up(sized.taps.computed(), kTile), 0.0F);
  for (int64_t row = 0; row < w.out_height; ++row)
    for (int64_t column = 0; column < w.out_width; ++column)
      sized.factors[sized.taps.computed_position(row, column)] =
          average_factor_ / static_cast<float>(window_.counted(w, row, column, count_padding_));
  return sized;
}

void QuantWindowOp::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  Call call{};
  call.in = quads_of(x, channels_);
  call.sized = sized_->get(call.in, [&] { return work_out(call.in); });
  call.x = quad_data(x);
  const TapPlan& plan = call.sized->taps;
  const Images out = plan.out().of_batch(call.in.batch);
  if (has_residual_) call.residual = quad_data(same_bytes(run.input(4), out));
  call.y = run.output(byte_shape(out));
  run_chunks(run, call.in.batch * plan.tiles(), quads_, plan.channel_floats(),
             [&](int64_t tile, int64_t begin, int64_t end) { run_chunk(call, tile, begin, end); });
}

/// Quads [begin, end) of one tile.
void QuantWindowOp::run_chunk(const Call& call, int64_t tile, int64_t begin, int64_t end) const {
  const TapPlan& plan = call.sized->taps;
  const int64_t n = tile / plan.tiles(), t = tile % plan.tiles(), width = plan.width(t);
  const bool staged = plan.is_staged(t);
  const Scratch memory((end - begin) * (plan.channel_floats() + (staged ? width : 0)));
  PackJob pack = plan.pack_job(t, call.x + n * call.in.image_size(), begin, end, memory.data());
  pack.outside = repeated(kind_ == QuantWindowJob::largest ? 0 : x_zero_point_);
  moves_.pack_taps(pack);

  QuantWindowJob job = window_job(call, begin, end);
  job.taps = memory.data();
  if (!call.sized->factors.empty()) job.position_factor = call.sized->factors.data() + plan.first(t);
  const int64_t image = n * plan.out().image_size();
  if (!staged) {
    // As many pieces as the layout has tiles: a quad of each lies in one stretch.
    for (int64_t at = 0; at < width; at += kTile, job.taps += kTile) {
      const int64_t first = plan.first(t) + at, offset = plan.out().index(n, begin, first);
      job.width = std::min(kTile, width - at);
      job.row_stride = plan.out().channel_stride(first / kTile);
      job.out = call.y + offset;
      if (call.residual) job.residual = call.residual + offset;
      kernels_.window_tile(job);
      if (job.position_factor) job.position_factor += kTile;
    }
    return;
  }
  float* stage = memory.data() + (end - begin) * plan.channel_floats();
  job.width = job.row_stride = width;
  job.out = stage;
  StageJob rows = plan.stage_job(t, stage, call.y + image);
  rows.stage_row = rows.row_begin = begin;
  rows.row_end = end;
  if (call.residual) {
    StageJob from = rows;
    from.y = const_cast<float*>(call.residual) + image;
    moves_.gather_rows(from);
    job.residual = stage;
  }
  kernels_.window_tile(job);
  moves_.scatter_rows(rows);
}

/// What all tiles of quads [begin, end) have in common.
QuantWindowJob QuantWindowOp::window_job(const Call& call, int64_t begin, int64_t end) const {
  QuantWindowJob job{};
  job.kind = kind_;
  job.quad_floats = call.sized->taps.channel_floats();
  job.tap_offsets = call.sized->tap_offsets.data();
  job.tap_count = static_cast<int64_t>(call.sized->tap_offsets.size());
  job.threes = call.sized->threes;
  job.quads = end - begin;
  job.halves = halves_;
  job.requantize = &requantize_;
  if (kind_ == QuantWindowJob::largest) return job;
  job.weights = weights_.data() + begin * halves_ * fours() * 16;
  job.bias = bias_.data() + 4 * begin;
  job.multiplier = multiplier_.data() + 4 * begin;
  return job;
}

}  // namespace st3fx

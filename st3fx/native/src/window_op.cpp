#include "window_op.h"

#include <limits>

#include "scalar.h"
#include "scratch.h"

namespace st3fx {
namespace {

constexpr int64_t kChunkBytes = 24 * 1024;  // packed input of some channels: within the L1 cache
constexpr int64_t kBand = 8 * kTile;  // positions at a time, so that few rows are packed twice

/// Pixels that an average at each position of a tile divides by, as factors.
std::vector<float> average_factors(const TapPlan& plan, const WindowAttributes& window,
                                   bool count_padding) {
  std::vector<float> factors(round_up(plan.computed(), kLanes), 0.0F);
  const Window& w = plan.window();
  for (int64_t row = 0; row < w.out_height; ++row)
    for (int64_t column = 0; column < w.out_width; ++column)
      factors[plan.computed_position(row, column)] =
          1.0F / static_cast<float>(window.counted(w, row, column, count_padding));
  return factors;
}

}  // namespace

/// What depends on the size of the images alone.
struct WindowOp::Sized {
  TapPlan taps;
  std::vector<uint32_t> tap_offsets;
  std::vector<float> factors;
};

struct WindowOp::Call {
  Images in;
  std::shared_ptr<const Sized> sized;
  const float* x;
  const float* residual;
  float* y;
};

WindowOp::WindowOp(const NodeInfo& node, WindowJob::Kind kind)
    : kernels_(kernels_of(current_isa())),
      kind_(kind),
      channels_(node.required_integer("channels")),
      window_(WindowAttributes::of(node)),
      input_layout_(parse_layout(node.text("input_layout", "nchw"))),
      output_layout_(parse_layout(node.text("output_layout", "nchw"))),
      sized_(std::make_unique<SizedCache<Sized>>()) {}

DepthwiseConv::DepthwiseConv(const NodeInfo& node) : WindowOp(node, WindowJob::convolve) {
  const Tensor weight = node.constant(1, "weight", ort::kFloat);
  const Shape expected{channels_, 1, window_.kernel[0], window_.kernel[1]};
  if (weight.shape != expected)
    throw Error("weight of shape " + to_string(weight.shape) + ", expected " + to_string(expected));
  weights_.assign(weight.floats(), weight.floats() + count(weight.shape));
  bias_ = read_bias(node, 2, channels_);
  activation_ = activation_of(node);
  residual_input_ = 3;
}

MaxPool::MaxPool(const NodeInfo& node) : WindowOp(node, WindowJob::largest) {}

AveragePool::AveragePool(const NodeInfo& node) : WindowOp(node, WindowJob::average) {
  count_padding_ = node.integer("count_include_pad", 0) != 0;
}

WindowOp::Sized WindowOp::work_out(const Images& in) const {
  Sized sized{TapPlan(window_, in, output_layout_, channels_, kBand), {}, {}};
  sized.tap_offsets = sized.taps.column_offsets(window_.taps());
  if (kind_ == WindowJob::average)
    sized.factors = average_factors(sized.taps, window_, count_padding_);
  return sized;
}

void WindowOp::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  Call call{};
  call.in = images_of(x, input_layout_, channels_);
  call.sized = sized_->get(call.in, [&] { return work_out(call.in); });
  call.x = x.floats();
  const TapPlan& plan = call.sized->taps;
  const std::optional<Tensor> residual =
      residual_input_ ? run.optional_input(residual_input_) : std::nullopt;
  call.residual = residual ? same_shape(*residual, plan.out()).floats() : nullptr;
  call.y = run.output(plan.out().shape());
  if (!kernels_) {
    const scalar::Convolution conv{call.in, plan.out(), plan.window(), channels_, activation_};
    if (kind_ == WindowJob::convolve)
      return scalar::depthwise(conv, weights_.data(), bias_.data(), call.x, call.residual, call.y);
    return scalar::pool(conv, window_, kind_ == WindowJob::largest, count_padding_, call.x, call.y);
  }
  const int64_t tiles = call.in.batch * plan.tiles();
  const int64_t channel_bytes = plan.channel_floats() * static_cast<int64_t>(sizeof(float));
  const int64_t chunk = std::clamp<int64_t>(kChunkBytes / channel_bytes, 1, channels_);
  const int64_t chunks = (channels_ + chunk - 1) / chunk;
  run.parallel_for(tiles * chunks, [&](int64_t task) {
    const int64_t begin = task % chunks * chunk;
    run_chunk(call, task / chunks, begin, std::min(begin + chunk, channels_));
  });
}

/// Channels [begin, end) of one tile.
void WindowOp::run_chunk(const Call& call, int64_t tile, int64_t begin, int64_t end) const {
  const TapPlan& plan = call.sized->taps;
  const int64_t n = tile / plan.tiles(), t = tile % plan.tiles(), width = plan.width(t);
  const bool staged = plan.is_staged(t);
  const Scratch memory((end - begin) * (plan.channel_floats() + (staged ? width : 0)));
  PackJob pack = plan.pack_job(t, call.x + n * call.in.image_size(), begin, end, memory.data());
  if (kind_ == WindowJob::largest) pack.outside = -std::numeric_limits<float>::infinity();
  kernels_->pack_taps(pack);

  float* stage = memory.data() + (end - begin) * plan.channel_floats();
  const int64_t image = n * plan.out().image_size();
  const int64_t offset = plan.out().index(n, begin, staged ? 0 : plan.first(t));
  WindowJob job{};
  job.kind = kind_;
  job.taps = memory.data();
  job.channel_floats = plan.channel_floats();
  job.tap_offsets = call.sized->tap_offsets.data();
  job.tap_count = window_.taps();
  job.channels = end - begin;
  if (kind_ == WindowJob::convolve) {
    job.weights = weights_.data() + begin * window_.taps();
    job.bias = bias_.data() + begin;
  }
  job.scale = call.sized->factors.empty() ? nullptr : call.sized->factors.data() + plan.first(t);
  job.width = width;
  job.activation = activation_;
  job.out = staged ? stage : call.y + offset;
  job.row_stride = staged ? width : plan.out().channel_stride(t);  // one tile each, unless staged
  if (call.residual) job.residual = staged ? stage : call.residual + offset;
  StageJob rows = plan.stage_job(t, stage, call.y + image);
  rows.stage_row = rows.row_begin = begin;
  rows.row_end = end;
  if (staged && call.residual) {
    StageJob from = rows;
    from.y = const_cast<float*>(call.residual) + image;
    kernels_->gather_rows(from);
  }
  kernels_->window_tile(job);
  if (staged) kernels_->scatter_rows(rows);
}

}  // namespace st3fx

#include "window_op.h"

#include <limits>

#include "scalar.h"
#include "tile_tasks.h"

namespace st3fx {
namespace {

constexpr int64_t kBand = 8;  // tiles at a time, so that few rows are packed twice

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

/// For each column of the kernel, the positions at which its taps count; empty: at all of them.
std::vector<std::vector<int32_t>> column_masks(const TapPlan& plan) {
  const Window& w = plan.window();
  std::vector<std::vector<int32_t>> masks(w.kernel_width);
  for (int64_t s = 0; s < w.kernel_width; ++s) {
    if (!plan.leaves_out(s, 0) && !plan.leaves_out(s, w.out_width - 1)) continue;
    masks[s].assign(round_up(plan.computed(), kTile), 0);
    for (int64_t p = 0; p < plan.computed(); ++p)
      masks[s][p] = plan.leaves_out(s, p % w.out_width) ? 0 : -1;
  }
  return masks;
}

bool has_three_columns(const Window& w, const std::vector<uint32_t>& tap_offsets) {
  return w.kernel_width == 3 && w.dilation_width == 1 && w.stride_width == 1 && w.pad_left < 2 &&
         w.out_width + 1 - w.pad_left <= w.width && tap_offsets[1] >= kLanes;
}

}  // namespace

/// What depends on the size of the images alone.
struct WindowOp::Sized {
  TapPlan taps;
  std::vector<uint32_t> tap_offsets;
  std::vector<std::vector<int32_t>> masks;
  std::vector<const int32_t*> mask_of_column;
  std::vector<float> factors;
  bool three_columns;  ///< As `WindowJob` has it.

  size_t bytes() const {
    return taps.bytes() + (factors.size() + masks.size() * taps.computed()) * sizeof(float);
  }
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

MaxPool::MaxPool(const NodeInfo& node) : WindowOp(node, WindowJob::largest) {
  window_.may_exceed = true;
}

AveragePool::AveragePool(const NodeInfo& node) : WindowOp(node, WindowJob::average) {
  count_padding_ = node.integer("count_include_pad", 0) != 0;
  window_.may_exceed = !count_padding_;
}

WindowOp::Sized WindowOp::work_out(const Images& in) const {
  // An output takes so many times the memory in packed inputs.
  const int64_t share = std::max<int64_t>(kBand / (window_.strides[0] * window_.strides[1]), 1);
  TapPlan taps(window_, in, output_layout_, channels_, share * kTile, Packing::masked);
  Sized sized{std::move(taps), {}, {}, {}, {}, false};
  sized.tap_offsets = sized.taps.column_offsets(window_.taps());
  sized.masks = column_masks(sized.taps);
  for (const std::vector<int32_t>& mask : sized.masks)
    sized.mask_of_column.push_back(mask.empty() ? nullptr : mask.data());
  sized.three_columns =
      kind_ == WindowJob::convolve && has_three_columns(sized.taps.window(), sized.tap_offsets);
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
  const Images out = plan.out().of_batch(call.in.batch);
  call.residual = residual ? same_shape(*residual, out).floats() : nullptr;
  call.y = run.output(out.shape());
  if (!kernels_) {
    const scalar::Convolution conv{call.in, out, plan.window(), channels_, activation_};
    if (kind_ == WindowJob::convolve)
      return scalar::depthwise(conv, weights_.data(), bias_.data(), call.x, call.residual, call.y);
    return scalar::pool(conv, window_, kind_ == WindowJob::largest, count_padding_, call.x, call.y);
  }
  run_chunks(run, call.in.batch * plan.tiles(), channels_, plan.channel_floats(),
             [&](int64_t tile, int64_t begin, int64_t end) { run_chunk(call, tile, begin, end); });
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

  WindowJob job = window_job(call, begin, end);
  job.taps = memory.data();
  if (!staged) {
    // As many pieces as the layout has tiles: a channel of each lies in one stretch.
    for (int64_t at = 0; at < width; at += kTile, job.taps += kTile) {
      const int64_t first = plan.first(t) + at;
      const int64_t offset = plan.out().index(n, begin, first);
      job.position = first;
      job.width = std::min(kTile, width - at);
      job.row_stride = plan.out().channel_stride(first / kTile);
      job.out = call.y + offset;
      if (call.residual) job.residual = call.residual + offset;
      kernels_->window_tile(job);
    }
    return;
  }
  float* stage = memory.data() + (end - begin) * plan.channel_floats();
  job.position = plan.first(t);
  job.width = job.row_stride = width;
  job.out = stage;
  const int64_t image = n * plan.out().image_size();
  StageJob rows = plan.stage_job(t, stage, call.y + image);
  rows.stage_row = rows.row_begin = begin;
  rows.row_end = end;
  if (call.residual) {
    StageJob from = rows;
    from.y = const_cast<float*>(call.residual) + image;
    kernels_->gather_rows(from);
    job.residual = stage;
  }
  kernels_->window_tile(job);
  kernels_->scatter_rows(rows);
}

/// What all tiles of channels [begin, end) have in common.
WindowJob WindowOp::window_job(const Call& call, int64_t begin, int64_t end) const {
  WindowJob job{};
  job.kind = kind_;
  job.channel_floats = call.sized->taps.channel_floats();
  job.rows = window_.kernel[0];
  job.columns = window_.kernel[1];
  job.tap_offsets = call.sized->tap_offsets.data();
  job.three_columns = call.sized->three_columns;
  job.masks = call.sized->mask_of_column.data();
  job.channels = end - begin;
  if (kind_ == WindowJob::convolve) {
    job.weights = weights_.data() + begin * window_.taps();
    job.bias = bias_.data() + begin;
  }
  job.scale = call.sized->factors.empty() ? nullptr : call.sized->factors.data();
  job.activation = activation_;
  return job;
}

}  // namespace st3fx

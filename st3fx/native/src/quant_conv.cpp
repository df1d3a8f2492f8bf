#include "quant_conv.h"

#include <algorithm>

#include "tile_tasks.h"

namespace st3fx {
namespace {

constexpr int64_t kMaxParts = 8;        // of rows
constexpr int64_t kQuadCost = 24;       // work of four rows beside their blocks, in blocks
constexpr int64_t kLeastChunk = 32;     // positions: fewer cost more in overhead than a cache saves
constexpr int64_t kFewQuads = 2;        // of an input whose packed rows stay in the cache anyway
constexpr int64_t kAlignBlocks = 6;     // of a column: fewer do not make up for packing each tap

}  // namespace

std::vector<int64_t> cut_quads(const QuadMatrix& matrix) {
  const int64_t parts = std::clamp<int64_t>(matrix.quads / 4, 1, kMaxParts);
  const int64_t total = matrix.blocks() + kQuadCost * matrix.quads;
  std::vector<int64_t> cuts{0};
  for (int64_t quad = 0; quad < matrix.quads; ++quad) {
    const int64_t done = matrix.row_start[4 * quad] + kQuadCost * quad;
    const auto cut = static_cast<int64_t>(cuts.size());
    if (cut < parts && done * parts >= cut * total) cuts.push_back(quad);
  }
  while (static_cast<int64_t>(cuts.size()) <= parts) cuts.push_back(matrix.quads);
  return cuts;
}

int64_t chunk_for(const QuantKernels& kernels, int64_t floats_per_position) {
  const int64_t cached = kernels.cache_bytes / (4 * std::max<int64_t>(floats_per_position, 1));
  return std::clamp(cached, std::min(kLeastChunk, kernels.largest_chunk), kernels.largest_chunk);
}

const Kernels& moving_kernels(Isa isa) {
  const Kernels* kernels = kernels_of(isa);
  return *(kernels ? kernels : kernels_of(Isa::baseline));
}

/// What depends on the size of the images alone.
struct QuantConv::Sized {
  TapPlan taps;
  bool is_direct;  ///< A tile of the input is its taps as it is; blocks have a quad for an offset.
  std::vector<QuantBlock> blocks;

  size_t bytes() const { return taps.bytes() + blocks.size() * sizeof(QuantBlock); }
};

/// One run: its tensors and sizes.
struct QuantConv::Call {
  Images in;
  std::shared_ptr<const Sized> sized;
  const float* x;
  const float* residual;
  float* y;

  const TapPlan& taps() const { return sized->taps; }
  Images out() const { return taps().out().of_batch(in.batch); }
  int64_t tiles() const { return taps().tiles(); }
};

QuantConv::QuantConv(const NodeInfo& node)
    : kernels_(quant_kernels_of(current_isa())),
      moves_(moving_kernels(current_isa())),
      channels_(node.required_integer("channels")),
      groups_(node.integer("group", 1)),
      x_zero_point_(byte_attribute(node, "x_zero_point", 0)),
      window_(WindowAttributes::of(node)),
      has_residual_(node.input_count() > 6),
      sized_(std::make_unique<SizedCache<Sized>>()) {
  if (groups_ < 1 || channels_ % groups_ || (groups_ > 1 && channels_ / groups_ % 4))
    throw Error(std::to_string(channels_) + " channels do not fall into " +
                std::to_string(groups_) + " groups of whole blocks of four");
  requantize_ = requantize_of(node, has_residual_);
  rows_ = rows_of(node, 3);
  if (rows_ % groups_)
    throw Error(std::to_string(rows_) + " outputs do not fall into " + std::to_string(groups_) +
                " groups");
  matrix_ = QuadMatrix::of(node, 1, (channels_ / groups_ + 3) / 4 * window_.taps(), kernels_,
                           x_zero_point_, read_integers(node, 4, "bias", rows_),
                           read_numbers(node, 5, "multiplier", rows_));
  requantize_.wide = matrix_.wide;
  parts_ = cut_quads(matrix_);
}

void QuantConv::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  Call call{};
  call.x = quad_data(x);
  call.in = quads_of(x, channels_);
  call.sized = sized_->get(call.in, [&] { return work_out(call.in); });
  const std::optional<Tensor> residual = run.optional_input(6);
  if (residual.has_value() != has_residual_) throw Error("input 'residual' comes and goes");
  call.residual = residual ? quad_data(same_bytes(*residual, call.out())) : nullptr;
  call.y = run.output(byte_shape(call.out()));
  run_tiles(
      run,
      {call.in.batch * call.tiles(), static_cast<int64_t>(parts_.size()) - 1, call.in.channels,
       call.taps().channel_floats()},
      [&](int64_t tile) {
        const int64_t at = call.in.tile_offset(tile / call.tiles(), tile % call.tiles());
        return call.sized->is_direct ? call.x + at : nullptr;
      },
      [&](int64_t tile, int64_t begin, int64_t end, float* taps) {
        pack(call, tile, begin, end, taps);
      },
      [&](int64_t tile, int64_t begin, int64_t end, const float* taps) {
        run_tile(call, tile, parts_[begin], parts_[end], taps);
      });
}

QuantConv::Sized QuantConv::work_out(const Images& in) const {
  const int64_t taps = window_.taps(), quads = in.channels / groups_;
  const Window window = window_.on(in.plane);
  // Aligned taps where enough blocks read them, and where images are large, as in SparseConv.
  const bool per_tap = taps > 1 && window.stride_width == 1 &&
                       window.out_height * window.out_width / kTile >= kEnoughTasks &&
                       matrix_.blocks() >= kAlignBlocks * groups_ * quads * taps;
  // The rows that two tiles share are packed for both, which few channels do not make up for.
  const bool is_shallow = taps > 1 && in.channels <= kFewQuads;
  Sized sized{TapPlan(window_, in, Layout::blocked, matrix_.quads, is_shallow ? 4 * kTile : kTile,
                      per_tap && !is_shallow ? Packing::per_tap : Packing::gaps),
              is_identity(window), {}};
  std::vector<uint32_t> offsets;
  if (!sized.is_direct) offsets = sized.taps.column_offsets(in.channels * taps);
  sized.blocks.reserve(matrix_.column.size());
  for (int64_t row = 0; row < matrix_.rows; ++row) {
    const int64_t group = row / (rows_ / groups_);
    for (uint32_t i = matrix_.row_start[row]; i < matrix_.row_start[row + 1]; ++i) {
      const int64_t column = group * quads * taps + matrix_.column[i];
      const uint32_t offset = sized.is_direct ? static_cast<uint32_t>(column) : offsets[column];
      sized.blocks.push_back({offset, matrix_.weights[i]});
    }
  }
  return sized;
}

/// Packs the input of a tile, quads [begin, end) of it.
void QuantConv::pack(const Call& call, int64_t tile, int64_t begin, int64_t end,
                     float* taps) const {
  const float* x = call.x + tile / call.tiles() * call.in.image_size();
  PackJob job = call.taps().pack_job(tile % call.tiles(), x, begin, end, taps);
  job.outside = repeated(x_zero_point_);
  moves_.pack_taps(job);
}

/// Quads [begin, end) of the outputs of one tile. `taps` holds its input, or is null: then it is
/// packed here.
void QuantConv::run_tile(const Call& call, int64_t tile, int64_t begin, int64_t end,
                         const float* taps) const {
  const int64_t n = tile / call.tiles(), t = tile % call.tiles(), width = call.taps().width(t);
  const bool staged = call.taps().is_staged(t);
  const Scratch stage(staged ? (end - begin) * width : 0);
  const Scratch own(taps ? 0 : call.in.channels * call.taps().channel_floats());
  if (!taps) pack(call, tile, 0, call.in.channels, own.data());
  QuantTileJob job{};
  job.blocks = call.sized->blocks.data();
  job.row_start = matrix_.row_start.data();
  job.shared = matrix_.shared.data();
  job.quad_begin = begin;
  job.quad_end = end;
  job.taps = taps ? taps : own.data();
  job.offset_bytes = 4 * (call.sized->is_direct ? width : 1);
  job.width = width;
  const int64_t tile_floats =
      call.in.channels * (call.sized->is_direct ? width : call.taps().channel_floats());
  job.chunk = chunk_for(kernels_, tile_floats / groups_ / width);
  job.bias = matrix_.bias.data();
  job.multiplier = matrix_.multiplier.data();
  job.requantize = &requantize_;
  const int64_t image = n * call.out().image_size();
  if (!staged) {
    const int64_t offset = call.out().tile_offset(n, t);
    job.out = call.y + offset;
    job.residual = call.residual ? call.residual + offset : nullptr;
    job.row_stride = call.out().channel_stride(t);
    return kernels_.sparse_tile(job);
  }
  StageJob rows = call.taps().stage_job(t, stage.data(), call.y + image);
  rows.stage_row = rows.row_begin = begin;
  rows.row_end = end;
  if (call.residual) {
    StageJob from = rows;
    from.y = const_cast<float*>(call.residual) + image;
    moves_.gather_rows(from);
    job.residual = stage.data() - begin * width;
  }
  job.out = stage.data() - begin * width;
  job.row_stride = width;
  kernels_.sparse_tile(job);
  moves_.scatter_rows(rows);
}

}  // namespace st3fx

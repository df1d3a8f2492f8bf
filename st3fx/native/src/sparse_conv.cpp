#include "sparse_conv.h"

#include "scalar.h"
#include "tile_tasks.h"

namespace st3fx {
namespace {

constexpr int64_t kCacheBytes = 32 * 1024;
constexpr int64_t kBlockNonzeros = 16;  // of a row
constexpr int64_t kAlignNonzeros = 6;   // of a column: fewer do not make up for packing each tap

/// How many columns to work on before the next ones: their input should stay in the L1 cache,
/// unless that leaves a row so few nonzeros that loading and storing its sums costs more.
int64_t block_columns(const SparseMatrix& matrix, const WindowAttributes& window,
                      Packing packing) {
  const int64_t planes = packing == Packing::per_tap
                             ? window.taps()
                             : std::min(window.strides[0], window.kernel[0]) *
                                   std::min(window.strides[1], window.kernel[1]);
  const int64_t cached = kCacheBytes / (kTile * 4 * planes) * window.taps();
  const double size = static_cast<double>(matrix.rows * matrix.columns);
  const double density = static_cast<double>(matrix.nonzeros() + 1) / size;
  return std::max(cached, static_cast<int64_t>(static_cast<double>(kBlockNonzeros) / density));
}

}  // namespace

/// What depends on the size of the images alone.
struct SparseConv::Sized {
  TapPlan taps;
  const PackedRows* rows;
  /// Of each nonzero's input; empty where columns are evenly spaced.
  std::vector<uint32_t> offsets;

  size_t bytes() const { return taps.bytes() + offsets.size() * sizeof(uint32_t); }
};

/// One run: its tensors and sizes.
struct SparseConv::Call {
  Images in;
  std::shared_ptr<const Sized> sized;
  const float* x;
  const float* residual;
  float* y;

  const TapPlan& taps() const { return sized->taps; }
  const PackedRows& rows() const { return *sized->rows; }
  Images out() const { return taps().out().of_batch(in.batch); }
  /// Whether a tile of the input is its taps as it is.
  bool is_direct() const { return in.layout == Layout::blocked && is_identity(taps().window()); }
  int64_t tiles() const { return taps().tiles(); }
  int64_t width(int64_t t) const { return taps().width(t); }
};

SparseConv::SparseConv(const NodeInfo& node)
    : kernels_(kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      groups_(node.integer("group", 1)),
      window_(WindowAttributes::of(node)),
      input_layout_(parse_layout(node.text("input_layout", "nchw"))),
      output_layout_(parse_layout(node.text("output_layout", "nchw"))),
      activation_(activation_of(node)),
      packed_(std::make_unique<PackedTwice>()),
      sized_(std::make_unique<SizedCache<Sized>>()) {
  if (groups_ < 1 || channels_ % groups_)
    throw Error(std::to_string(channels_) + " channels do not fall into " +
                std::to_string(groups_) + " groups");
  matrix_ = SparseMatrix::of(node, 1, channels_ / groups_ * window_.taps());
  rows_ = matrix_.rows;
  if (rows_ % groups_)
    throw Error(std::to_string(rows_) + " outputs do not fall into " + std::to_string(groups_) +
                " groups");
  bias_ = read_bias(node, 4, rows_);
}

/// The rows for a packing of their input, made when it is first needed: the images decide.
const PackedRows& SparseConv::packed(Packing packing) const {
  Packed& found = packing == Packing::per_tap ? packed_->per_tap : packed_->gaps;
  if (const PackedRows* rows = found.rows.load()) return *rows;
  // Two runs may both come here: one of them keeps what it made.
  auto made = std::make_unique<const PackedRows>(
      pack_rows(matrix_, groups_, window_.taps(), block_columns(matrix_, window_, packing)));
  const PackedRows* there = nullptr;
  if (found.rows.compare_exchange_strong(there, made.get())) there = made.release();
  return *there;
}

void SparseConv::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  Call call;
  call.x = x.floats();
  call.in = images_of(x, input_layout_, channels_);
  call.sized = sized_->get(call.in, [&] { return work_out(call.in); });
  const Images out = call.out();
  const std::optional<Tensor> residual = run.optional_input(5);
  call.residual = residual ? same_shape(*residual, out).floats() : nullptr;
  call.y = run.output(out.shape());
  if (kernels_) return run_tasks(call, run);
  scalar::sparse_conv({call.in, out, call.taps().window(), groups_, activation_}, matrix_, call.x,
                      bias_.data(), call.residual, call.y);
}

SparseConv::Sized SparseConv::work_out(const Images& in) const {
  const Packing packing = packing_for(in);
  Sized sized{TapPlan(window_, in, output_layout_, rows_, kTile, packing), nullptr, {}};
  if (!kernels_) return sized;
  sized.rows = &packed(packing);
  if (window_.taps() == 1) return sized;
  const std::vector<uint32_t> of_column = sized.taps.column_offsets(sized.rows->largest_block());
  for (const RowPart& part : sized.rows->parts)
    for (const Segment& segment : part.blocks)
      for (uint16_t column : segment.columns) sized.offsets.push_back(of_column[column]);
  return sized;
}

/// Aligned taps where enough nonzeros read them, and where images are large: of a small one each
/// tile is packed by several tasks, or filled up to its width.
Packing SparseConv::packing_for(const Images& in) const {
  const Window window = window_.on(in.plane);
  const int64_t tiles = window.out_height * window.out_width / kTile;
  const int64_t columns = channels_ / groups_ * window_.taps();
  const bool pays = matrix_.nonzeros() >= kAlignNonzeros * groups_ * columns;
  return window_.taps() > 1 && window.stride_width == 1 && tiles >= kEnoughTasks && pays
             ? Packing::per_tap
             : Packing::gaps;
}

/// Splits the output into tasks, tiles or shares of their rows, and runs them.
void SparseConv::run_tasks(const Call& call, const Run& run) const {
  run_tiles(
      run,
      {call.in.batch * call.tiles(), static_cast<int64_t>(call.rows().parts.size()), channels_,
       call.taps().channel_floats()},
      [&](int64_t tile) {
        const int64_t at = call.in.tile_offset(tile / call.tiles(), tile % call.tiles());
        return call.is_direct() ? call.x + at : nullptr;
      },
      [&](int64_t tile, int64_t begin, int64_t end, float* taps) {
        pack(call, tile, begin, end, taps);
      },
      [&](int64_t tile, int64_t begin, int64_t end, const float* taps) {
        run_tile(call, tile, begin, end, taps);
      });
}

/// Packs the input of a tile, channels [begin, end) of it.
void SparseConv::pack(const Call& call, int64_t tile, int64_t begin, int64_t end,
                      float* taps) const {
  const float* x = call.x + tile / call.tiles() * call.in.image_size();
  kernels_->pack_taps(call.taps().pack_job(tile % call.tiles(), x, begin, end, taps));
}

/// Parts [begin, end) of one tile. `taps` holds its input, or is null: then it is packed here.
void SparseConv::run_tile(const Call& call, int64_t tile, int64_t begin, int64_t end,
                          const float* taps) const {
  const int64_t n = tile / call.tiles(), t = tile % call.tiles();
  const bool staged = call.taps().is_staged(t);
  const Scratch stage(staged ? rows_ * call.width(t) : 0);
  TileJob job = tile_job(call, n, t, staged ? stage.data() : nullptr);
  const int64_t taps_per_channel = window_.taps(), channel_floats = job.column_stride;
  const Scratch own(taps ? 0 : call.rows().largest_block() / taps_per_channel * channel_floats);
  const int64_t per_group = call.rows().parts_per_group;
  for (int64_t group = begin / per_group; group * per_group < end; ++group) {
    const int64_t first = std::max(begin, group * per_group);
    const int64_t last = std::min(end, (group + 1) * per_group);
    for (size_t b = 0; b < call.rows().blocks.size(); ++b) {
      const ColumnBlock& block = call.rows().blocks[b];
      const int64_t channel = group * (channels_ / groups_) + block.begin / taps_per_channel;
      if (!taps) pack(call, tile, channel, channel + block.size / taps_per_channel, own.data());
      job.taps = taps ? taps + channel * channel_floats : own.data();
      job.first = b == 0;
      job.last = b + 1 == call.rows().blocks.size();
      for (int64_t p = first; p < last; ++p)
        run_part(call, n, t, call.rows().parts[p], call.rows().parts[p].blocks[b], job, staged);
    }
  }
}

/// What all parts and blocks of a tile have in common.
TileJob SparseConv::tile_job(const Call& call, int64_t n, int64_t t, float* stage) const {
  TileJob job{};
  job.width = call.width(t);
  job.column_stride = call.is_direct() ? job.width : call.taps().channel_floats();
  job.bias = bias_.data();
  job.activation = activation_;
  const int64_t offset = call.out().tile_offset(n, t);
  job.out = stage ? stage : call.y + offset;
  job.row_stride = stage ? job.width : call.out().channel_stride(t);
  if (call.residual) job.residual = stage ? stage : call.residual + offset;
  return job;
}

/// One segment, and what moves its rows between the stage and the image.
void SparseConv::run_part(const Call& call, int64_t n, int64_t t, const RowPart& part,
                          const Segment& segment, TileJob job, bool staged) const {
  job.pairs = segment.pairs.data();
  job.pair_count = static_cast<int64_t>(segment.pairs.size());
  job.values = segment.values.data();
  job.columns = segment.columns.data();
  const std::vector<uint32_t>& offsets = call.sized->offsets;
  if (!offsets.empty()) job.offsets = offsets.data() + segment.first_nonzero;
  StageJob rows{};
  if (staged && (job.first || job.last)) {
    rows = call.taps().stage_job(t, job.out, call.y + n * call.out().image_size());
    rows.row_begin = part.first_row;
    rows.row_end = part.first_row + part.rows;
  }
  if (staged && job.first && call.residual) {
    StageJob residual = rows;
    residual.y = const_cast<float*>(call.residual) + n * call.out().image_size();
    kernels_->gather_rows(residual);
  }
  kernels_->sparse_tile(job);
  if (staged && job.last) kernels_->scatter_rows(rows);
}

}  // namespace st3fx

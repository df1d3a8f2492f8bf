#include "sparse_conv.h"

#include <cstdlib>

#include "scalar.h"
#include "scratch.h"

namespace st3fx {
namespace {

constexpr int64_t kEnoughTasks = 8;  // with fewer tiles the rows are split too
constexpr int64_t kPackTasks = 4;    // shares of a tile's channels

/// How many columns to work on before the next ones: their input should stay in the L1 cache, unless
/// that leaves a row so few nonzeros that loading and storing its sums costs more.
int64_t block_columns(const SparseMatrix& matrix) {
  static const char* env1 = std::getenv("BLK_KB");
  static const char* env2 = std::getenv("BLK_NNZ");
  const int64_t kb = env1 ? std::atoi(env1) : 32, nn = env2 ? std::atoi(env2) : 16;
  const int64_t cache = kb * 1024 / (kTile * 4);
  const double density =
      static_cast<double>(matrix.nonzeros() + 1) / static_cast<double>(matrix.rows * matrix.columns);
  return std::max(cache, static_cast<int64_t>(static_cast<double>(nn) / density));
}

std::vector<float> read_bias(const NodeInfo& node, size_t input, int64_t rows) {
  const std::optional<Tensor> bias = node.optional_constant(input, "bias", ort::kFloat);
  if (!bias) return std::vector<float>(rows, 0.0F);
  if (bias->shape != Shape{rows})
    throw Error("bias of shape " + to_string(bias->shape) + " for " + std::to_string(rows) +
                " outputs");
  return {bias->floats(), bias->floats() + rows};
}

}  // namespace

/// One run: its tensors and sizes.
struct SparseConv::Call {
  Images in, out;
  Window window;
  const float* x;
  const float* residual;
  float* y;

  int64_t tiles() const { return out.plane.tiles(); }
  /// Whether the taps of a tile are the input itself.
  bool is_direct() const { return in.layout == Layout::blocked && is_identity(window); }
};

SparseConv::SparseConv(const NodeInfo& node)
    : kernels_(kernels_of(current_isa())),
      channels_(node.required_integer("channels")),
      groups_(node.integer("group", 1)),
      window_(WindowAttributes::of(node)),
      input_layout_(parse_layout(node.text("input_layout", "nchw"))),
      output_layout_(parse_layout(node.text("output_layout", "nchw"))),
      activation_(activation_of(node)) {
  if (groups_ < 1 || channels_ % groups_)
    throw Error(std::to_string(channels_) + " channels do not fall into " +
                std::to_string(groups_) + " groups");
  matrix_ = SparseMatrix::of(node, 1, channels_ / groups_ * window_.taps());
  rows_ = matrix_.rows;
  if (rows_ % groups_)
    throw Error(std::to_string(rows_) + " outputs do not fall into " + std::to_string(groups_) +
                " groups");
  bias_ = read_bias(node, 4, rows_);
  if (!kernels_) return;
  packed_ = pack_rows(matrix_, groups_, window_.taps(), block_columns(matrix_));
  matrix_ = {};
}

void SparseConv::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  Call call;
  call.x = x.floats();
  call.in = images_of(x, input_layout_, channels_);
  call.window = window_.on(call.in.plane);
  call.out = {output_layout_, call.in.batch, rows_, {call.window.out_height, call.window.out_width}};
  const std::optional<Tensor> residual = run.optional_input(5);
  if (residual && residual->shape != call.out.shape())
    throw Error("residual of shape " + to_string(residual->shape) + " for an output of shape " +
                to_string(call.out.shape()));
  call.residual = residual ? residual->floats() : nullptr;
  call.y = run.output(call.out.shape());
  if (kernels_) return run_tasks(call, run);
  scalar::sparse_conv({call.in, call.out, call.window, groups_, activation_}, matrix_, call.x,
                      bias_.data(), call.residual, call.y);
}

void SparseConv::run_tasks(const Call& call, const Run& run) const {
  const int64_t parts = static_cast<int64_t>(packed_.parts.size());
  const int64_t tiles = call.in.batch * call.tiles();
  if (tiles == 0) return;
  const int64_t shares = std::min(parts, (kEnoughTasks + tiles - 1) / tiles);
  auto run_share = [&](int64_t task, const float* taps) {
    const int64_t share = task % shares;
    run_tile(call, task / shares, parts * share / shares, parts * (share + 1) / shares, taps);
  };
  if (call.is_direct()) {
    return run.parallel_for(tiles * shares, [&](int64_t task) {
      const int64_t tile = task / shares;
      run_share(task, call.x + call.in.tile_offset(tile / call.tiles(), tile % call.tiles()));
    });
  }
  if (shares == 1) return run.parallel_for(tiles, [&](int64_t task) { run_share(task, nullptr); });
  // Few tiles: their input is packed once, by all threads, and then shared.
  const int64_t taps = channels_ * window_.taps() * kTile;
  const Scratch packed(tiles * taps);
  run.parallel_for(tiles * kPackTasks, [&](int64_t task) {
    const int64_t tile = task / kPackTasks, share = task % kPackTasks;
    const int64_t begin = channels_ * share / kPackTasks, end = channels_ * (share + 1) / kPackTasks;
    const int64_t width = call.out.plane.tile_width(tile % call.tiles());
    const Scratch patch(patch_floats(call.window));
    pack(call, tile, begin, end, packed.data() + tile * taps + begin * window_.taps() * width,
         patch.data());
  });
  run.parallel_for(tiles * shares,
                   [&](int64_t task) { run_share(task, packed.data() + task / shares * taps); });
}

void SparseConv::pack(const Call& call, int64_t tile, int64_t begin, int64_t end, float* taps,
                      float* patch) const {
  const int64_t t = tile % call.tiles();
  kernels_->pack_taps({call.window, call.in.image(call.x, tile / call.tiles()), begin, end, t * kTile,
                       call.out.plane.tile_valid(t), call.out.plane.tile_width(t), taps, patch});
}

void SparseConv::run_tile(const Call& call, int64_t tile, int64_t begin, int64_t end,
                          const float* taps) const {
  const int64_t n = tile / call.tiles(), t = tile % call.tiles();
  const int64_t width = call.out.plane.tile_width(t), valid = call.out.plane.tile_valid(t);
  const int64_t offset = call.out.tile_offset(n, t), stride = call.out.channel_stride(t);
  // Whole vectors would reach over the end of a plane: such a tile is computed aside.
  const bool aside = call.out.layout == Layout::nchw && valid < width;
  const Scratch stage(aside ? 2 * rows_ * width : 0);
  const int64_t first_row = packed_.parts[begin].first_row;
  const int64_t last_row = packed_.parts[end - 1].first_row + packed_.parts[end - 1].rows;
  float* const held = stage.data() + rows_ * width;
  TileJob job{};
  job.width = width;
  job.out = aside ? stage.data() : call.y + offset;
  job.row_stride = aside ? width : stride;
  job.bias = bias_.data();
  job.activation = activation_;
  if (call.residual) {
    job.residual = aside ? held : call.residual + offset;
    for (int64_t row = first_row; aside && row < last_row; ++row)
      std::copy_n(call.residual + offset + row * stride, valid, held + row * width);
  }
  const int64_t group_channels = channels_ / groups_, window_taps = window_.taps();
  const int64_t block_limit = packed_.blocks.back().size + window_taps;
  const Scratch own(taps ? 0 : block_limit * width + patch_floats(call.window));
  for (int64_t group = begin / packed_.parts_per_group; group * packed_.parts_per_group < end; ++group) {
    const int64_t from = std::max(begin, group * packed_.parts_per_group);
    const int64_t to = std::min(end, (group + 1) * packed_.parts_per_group);
    for (size_t b = 0; b < packed_.blocks.size(); ++b) {
      const ColumnBlock& block = packed_.blocks[b];
      if (taps) {
        job.taps = taps + (group * group_channels * window_taps + block.begin) * width;
      } else {
        const int64_t channel = group * group_channels + block.begin / window_taps;
        pack(call, tile, channel, channel + block.size / window_taps, own.data(),
             own.data() + block_limit * width);
        job.taps = own.data();
      }
      job.first = b == 0;
      job.last = b + 1 == packed_.blocks.size();
      for (int64_t p = from; p < to; ++p) {
        const Segment& segment = packed_.parts[p].blocks[b];
        job.pairs = segment.pairs.data();
        job.pair_count = static_cast<int64_t>(segment.pairs.size());
        job.values = segment.values.data();
        job.columns = segment.columns.data();
        kernels_->sparse_tile(job);
      }
    }
  }
  for (int64_t row = first_row; aside && row < last_row; ++row)
    std::copy_n(stage.data() + row * width, valid, call.y + offset + row * stride);
}

}  // namespace st3fx

#include "sparse_linear.h"

#include "scalar.h"
#include "scratch.h"
#include "window.h"

namespace st3fx {
namespace {

constexpr int64_t kEnoughTasks = 8;  // with fewer tiles the rows are split too
constexpr int64_t kPackTasks = 4;    // shares of a tile's features
constexpr int64_t kAllColumns = 1 << 16;

bool parse_side(const std::string& side) {
  if (side == "left") return true;
  if (side == "right") return false;
  throw Error("side '" + side + "' is neither 'left' nor 'right'");
}

}  // namespace

/// One run: a batch of matrices of `vectors` vectors each, which are columns where the weights
/// stand on the left and rows where they stand on the right. A tile is 112 vectors of one matrix.
struct SparseLinear::Call {
  const float* x;
  float* y;
  int64_t batch, vectors;
  Plane tiling;

  int64_t tiles() const { return batch * tiling.tiles(); }
  int64_t tile_in_matrix(int64_t tile) const { return tile % tiling.tiles(); }
  int64_t width(int64_t tile) const { return tiling.tile_width(tile_in_matrix(tile)); }
  int64_t valid(int64_t tile) const { return tiling.tile_valid(tile_in_matrix(tile)); }
};

SparseLinear::SparseLinear(const NodeInfo& node)
    : kernels_(kernels_of(current_isa())),
      features_(node.required_integer("features")),
      weights_left_(parse_side(node.text("side", "right"))),
      activation_(activation_of(node)) {
  matrix_ = SparseMatrix::of(node, 1, features_);
  rows_ = matrix_.rows;
  bias_ = read_bias(node, 4, rows_);
  if (!kernels_) return;
  packed_ = pack_rows(matrix_, 1, 1, kAllColumns);
  matrix_ = {};
}

void SparseLinear::operator()(const Run& run) const {
  const Tensor x = run.input(0);
  Shape shape = x.shape;
  const size_t axis = weights_left_ ? 2 : 1;  // counted from the end
  if (shape.size() < axis || shape[shape.size() - axis] != features_)
    throw Error("input of shape " + to_string(shape) + " has not " + std::to_string(features_) +
                " features on axis -" + std::to_string(axis));
  Call call{};
  call.vectors = weights_left_ ? shape.back() : count(shape) / features_;
  call.batch = weights_left_ ? count({shape.begin(), shape.end() - 2}) : 1;
  call.tiling = {1, call.vectors};
  call.x = x.floats();
  shape[shape.size() - axis] = rows_;
  call.y = run.output(shape);
  if (call.batch * call.vectors == 0) return;
  if (kernels_) {
    const bool single = call.batch * call.vectors == 1;
    return single ? run_vector(call, run) : run_tiles(call, run);
  }
  const int64_t step = weights_left_ ? 1 : features_, stride = weights_left_ ? call.vectors : 1;
  for (int64_t b = 0; b < call.batch; ++b)
    scalar::sparse_product({call.vectors, step, stride, weights_left_ ? 1 : rows_, stride,
                            activation_},
                           matrix_, call.x + b * features_ * call.vectors, bias_.data(),
                           call.y + b * rows_ * call.vectors);
}

void SparseLinear::run_vector(const Call& call, const Run& run) const {
  run.parallel_for(static_cast<int64_t>(packed_.parts.size()), [&](int64_t p) {
    for (size_t b = 0; b < packed_.blocks.size(); ++b) {
      const Segment& segment = packed_.parts[p].blocks[b];
      kernels_->sparse_dot({segment.pairs.data(), static_cast<int64_t>(segment.pairs.size()),
                            segment.values.data(), segment.columns.data(),
                            call.x + packed_.blocks[b].begin, bias_.data(), call.y, b == 0,
                            b + 1 == packed_.blocks.size(), activation_});
    }
  });
}

void SparseLinear::run_tiles(const Call& call, const Run& run) const {
  const int64_t parts = static_cast<int64_t>(packed_.parts.size()), tiles = call.tiles();
  const int64_t shares = std::min(parts, (kEnoughTasks + tiles - 1) / tiles);
  auto run_share = [&](int64_t tile, int64_t share, const float* taps) {
    for (int64_t p = parts * share / shares; p < parts * (share + 1) / shares; ++p)
      run_part(call, tile, packed_.parts[p], taps);
  };
  if (shares == 1) {
    return run.parallel_for(tiles, [&](int64_t tile) {
      const Scratch taps(features_ * call.width(tile));
      pack(call, tile, 0, features_, taps.data());
      run_share(tile, 0, taps.data());
    });
  }
  // Few tiles: their input is packed once, by all threads, and then shared.
  const Scratch taps(tiles * features_ * kTile);
  run.parallel_for(tiles * kPackTasks, [&](int64_t task) {
    const int64_t tile = task / kPackTasks, share = task % kPackTasks;
    pack(call, tile, features_ * share / kPackTasks, features_ * (share + 1) / kPackTasks,
         taps.data() + tile * features_ * kTile);
  });
  run.parallel_for(tiles * shares, [&](int64_t task) {
    const int64_t tile = task / shares;
    run_share(tile, task % shares, taps.data() + tile * features_ * kTile);
  });
}

/// Features [begin, end) of a tile's vectors side by side, zeros behind the last vector.
void SparseLinear::pack(const Call& call, int64_t tile, int64_t begin, int64_t end,
                        float* taps) const {
  const int64_t width = call.width(tile), valid = call.valid(tile);
  const int64_t first = call.tile_in_matrix(tile) * kTile;
  const float* x = call.x + tile / call.tiling.tiles() * features_ * call.vectors;
  if (!weights_left_)
    kernels_->transpose(x + first * features_ + begin, features_, valid, end - begin,
                        taps + begin * width, width);
  for (int64_t f = begin; f < end; ++f) {
    float* to = taps + f * width;
    if (weights_left_) std::copy_n(x + f * call.vectors + first, valid, to);
    std::fill(to + valid, to + width, 0.0F);
  }
}

void SparseLinear::run_part(const Call& call, int64_t tile, const RowPart& part,
                            const float* taps) const {
  const int64_t width = call.width(tile), valid = call.valid(tile);
  const int64_t first = call.tile_in_matrix(tile) * kTile;
  const Scratch stage(part.rows * width);
  TileJob job{};
  job.width = width;
  job.column_stride = width;
  job.out = stage.data() - part.first_row * width;  // row k of all rows at k · width
  job.row_stride = width;
  job.bias = bias_.data();
  job.activation = activation_;
  for (size_t b = 0; b < packed_.blocks.size(); ++b) {
    const Segment& segment = part.blocks[b];
    job.pairs = segment.pairs.data();
    job.pair_count = static_cast<int64_t>(segment.pairs.size());
    job.values = segment.values.data();
    job.columns = segment.columns.data();
    job.taps = taps + packed_.blocks[b].begin * width;
    job.first = b == 0;
    job.last = b + 1 == packed_.blocks.size();
    kernels_->sparse_tile(job);
  }
  float* y = call.y + tile / call.tiling.tiles() * rows_ * call.vectors;
  if (weights_left_) {
    for (int64_t r = 0; r < part.rows; ++r)
      std::copy_n(stage.data() + r * width, valid, y + (part.first_row + r) * call.vectors + first);
  } else {
    kernels_->transpose(stage.data(), width, part.rows, valid, y + first * rows_ + part.first_row,
                        rows_);
  }
}

}  // namespace st3fx

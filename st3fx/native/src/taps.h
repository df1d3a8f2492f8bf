// How a convolution's input is packed, and where each tap finds it.
//
// The outputs of an image are computed in rows of `pitch` positions, of which the first `out_width`
// count; a *tile* is a number of these positions, or what is left of them. The input is split into
// *planes*: every stride-th row and column of it, or what one tap of the kernel reads. In a plane
// the inputs of neighbouring outputs are neighbours, so that a tile reads, for each tap, one stretch
// of one plane.
#pragma once

#include <vector>

#include "layout.h"
#include "window.h"

namespace st3fx {

/// How taps share planes, and what becomes of those that fall beside the image.
enum class Packing {
  gaps,     ///< Rows are packed with what lies beside them, which leaves gaps between the outputs.
  masked,   ///< Rows follow each other without gaps; the reader masks what `leaves_out` names.
  per_tap,  ///< Each tap has a plane of its own, without gaps: more to pack, but aligned to read.
};

class TapPlan {
 public:
  /// For images of that size, however many. `tile`: positions that are computed at a time, a multiple of 112. Throws `Error` where the
  /// image is too large for 32-bit offsets.
  TapPlan(const WindowAttributes& attributes, const Images& in, Layout out_layout, int64_t rows,
          int64_t tile = kTile, Packing packing = Packing::gaps);

  const Window& window() const { return window_; }
  const Images& out() const { return out_; }  ///< One image.

  /// Whether tile `t` cannot be computed where it belongs: its rows have gaps, whole vectors would
  /// reach over the end of a channel, or it is wider than those that the layout has.
  bool is_staged(int64_t t) const {
    return has_gaps() || (out_.layout == Layout::nchw ? valid(t) < width(t) : tile_ > kTile);
  }
  bool has_gaps() const { return pitch_ != window_.out_width; }
  /// Whether the taps of that column of the kernel must be left out at that column of the output.
  bool leaves_out(int64_t kernel_column, int64_t out_column) const {
    const int64_t x = out_column * window_.stride_width +
                      kernel_column * window_.dilation_width - window_.pad_left;
    return packing_ == Packing::masked && (x < 0 || x >= window_.width);
  }
  /// Where an output stands among the computed positions.
  int64_t computed_position(int64_t row, int64_t column) const { return row * pitch_ + column; }
  int64_t computed() const { return (window_.out_height - 1) * pitch_ + window_.out_width; }
  int64_t tiles() const { return (computed() + tile_ - 1) / tile_; }
  int64_t first(int64_t t) const { return t * tile_; }
  /// Positions that tile `t` has room for, a multiple of 16.
  int64_t width(int64_t t) const { return round_up(valid(t), kLanes); }
  /// Positions of tile `t` that are there.
  int64_t valid(int64_t t) const { return std::min(tile_, computed() - first(t)); }
  /// Of memory, for its lists.
  size_t bytes() const {
    return (inputs_.size() + outputs_.size()) * sizeof(PixelRun) +
           groups_.size() * sizeof(PixelGroup) + plane_runs_.size() * sizeof(PlaneRuns);
  }
  /// Floats of one packed channel.
  int64_t channel_floats() const { return plane_floats_ * static_cast<int64_t>(planes_.size()); }
  /// Where each of `columns` columns of the weights begins, counted from the first channel's begin.
  std::vector<uint32_t> column_offsets(int64_t columns) const;

  /// Packs channels [begin, end) of tile `t` of an image.
  PackJob pack_job(int64_t t, const float* x, int64_t begin, int64_t end, float* taps) const;
  /// Moves rows of tile `t` to or from an image.
  StageJob stage_job(int64_t t, float* stage, float* y) const;

 private:
  struct PixelPlane {
    int64_t row_phase, column;  ///< Its first row and column, counted in the padded image.
    int64_t begin, end;         ///< Pixels [begin, end) of a row lie in the image.
  };
  struct Tap {
    int64_t plane, offset;
  };

  void choose_pitch();
  void find_taps();
  int64_t plane_of(int64_t row_phase, int64_t column);
  void list_inputs();
  PlaneRuns list_plane(const PixelPlane& plane, int64_t first);
  void list_groups(size_t runs_begin);
  void list_outputs();

  Window window_;
  Images in_, out_;
  int64_t tile_, pitch_ = 0, plane_floats_ = 0;
  int64_t lead_ = 0;     ///< Positions in front of a tile's first that are packed too.
  Packing packing_;      ///< `gaps` where rows are too long to be masked.
  std::vector<PixelPlane> planes_;
  std::vector<Tap> taps_;
  std::vector<PixelRun> inputs_, outputs_;
  std::vector<PixelGroup> groups_;     ///< Of `inputs_`, for strides of one and two.
  std::vector<PlaneRuns> plane_runs_;  ///< [tile][plane]
  std::vector<size_t> output_begin_;   ///< Of each tile's outputs, and the end.
};

}  // namespace st3fx

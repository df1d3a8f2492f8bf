#include "taps.h"

#include <limits>

namespace st3fx {
namespace {

/// The remainder that is not negative.
int64_t floor_mod(int64_t value, int64_t by) { return (value % by + by) % by; }

/// Makes one run of two where the second goes on from the first.
bool extend(PixelRun& first, const PixelRun& second) {
  const bool adjacent = first.image_offset + first.count == second.image_offset &&
                        first.tile_offset + first.count == second.tile_offset &&
                        first.channel_stride == second.channel_stride;
  if (adjacent) first.count += second.count;
  return adjacent;
}

/// Adds positions [p, p + n), every stride-th, to the runs from `begin` on: one run for each tile
/// that they lie in.
void add_runs(std::vector<PixelRun>& runs, size_t begin, const Images& images, int64_t p, int64_t n,
              int64_t stride, int64_t tile_offset) {
  const bool cut = images.layout == Layout::blocked;
  while (n > 0) {
    const int64_t t = cut ? p / kTile : 0;
    const int64_t room = (cut ? kTile - p % kTile : images.plane.positions() - p) + stride - 1;
    const int64_t length = std::min(n, room / stride);
    const int64_t channel_stride = cut ? images.channel_stride(t) : images.plane.positions();
    const PixelRun run{images.index(0, 0, p), channel_stride, static_cast<int32_t>(tile_offset),
                       static_cast<int32_t>(length), false};
    if (stride > 1 || runs.size() == begin || !extend(runs.back(), run)) runs.push_back(run);
    p += length * stride;
    tile_offset += length;
    n -= length;
  }
}

}  // namespace

TapPlan::TapPlan(const WindowAttributes& attributes, const Images& in, Layout out_layout,
                 int64_t rows, int64_t tile, Packing packing)
    : window_(attributes.on(in.plane)),
      in_(in),
      out_{out_layout, 1, rows, {window_.out_height, window_.out_width}},
      tile_(tile),
      packing_(packing) {
  choose_pitch();
  tile_ = std::min(tile, round_up(computed(), kTile));
  find_taps();
  if (channel_floats() * in.channels > std::numeric_limits<int32_t>::max())
    throw Error("images of " + to_string(in.shape()) + " are too large for this kernel");
  list_inputs();
  list_outputs();
}

void TapPlan::choose_pitch() {
  const Window& w = window_;
  // Masked, the pixels of a row that are needed together must fit between those of its neighbours.
  const int64_t pixels = (w.width + w.stride_width - 1) / w.stride_width;
  if (packing_ == Packing::masked && pixels > w.out_width) packing_ = Packing::gaps;
  if (packing_ == Packing::masked) lead_ = round_up(w.pad_left, kLanes);
  if (packing_ != Packing::gaps) {
    pitch_ = w.out_width;
    return;
  }
  const int64_t span = (w.kernel_width - 1) * w.dilation_width;
  pitch_ = w.out_width + span / w.stride_width;
  if (w.stride_width > 1) return;
  // The zeros on the right of a row may be those on the left of the next one.
  const int64_t right = std::max<int64_t>(w.out_width + span - w.pad_left - w.width, 0);
  pitch_ -= std::min({right, w.pad_left, span});
}

void TapPlan::find_taps() {
  const Window& w = window_;
  int64_t reach = 0;
  for (int64_t r = 0; r < w.kernel_height; ++r) {
    for (int64_t s = 0; s < w.kernel_width; ++s) {
      const int64_t row = r * w.dilation_height, column = s * w.dilation_width;
      if (packing_ == Packing::per_tap) {
        taps_.push_back({plane_of(row, column), 0});
        continue;
      }
      // Masked, a row begins with the image's first pixel of that phase, else with the padding's.
      const int64_t begin = packing_ == Packing::masked ? w.pad_left : 0;
      const int64_t phase = floor_mod(column - begin, w.stride_width);
      const int64_t plane = plane_of(row % w.stride_height, begin + phase);
      const int64_t shift = (column - begin - phase) / w.stride_width;
      taps_.push_back({plane, row / w.stride_height * pitch_ + lead_ + shift});
      reach = std::max(reach, taps_.back().offset);
    }
  }
  plane_floats_ = round_up(tile_ + reach, kLanes);
}

int64_t TapPlan::plane_of(int64_t row_phase, int64_t column) {
  for (size_t i = 0; i < planes_.size(); ++i)
    if (planes_[i].row_phase == row_phase && planes_[i].column == column)
      return static_cast<int64_t>(i);
  // Pixel x of a row is column x · stride + column − pad_left of the image.
  auto first_from = [&](int64_t image_column) {
    const int64_t distance = image_column + window_.pad_left - column;
    return std::max<int64_t>((distance + window_.stride_width - 1) / window_.stride_width, 0);
  };
  planes_.push_back({row_phase, column, first_from(0), first_from(window_.width)});
  return static_cast<int64_t>(planes_.size()) - 1;
}

std::vector<uint32_t> TapPlan::column_offsets(int64_t columns) const {
  std::vector<uint32_t> offsets;
  offsets.reserve(columns);
  const int64_t channels = columns / static_cast<int64_t>(taps_.size());
  for (int64_t channel = 0; channel < channels; ++channel)
    for (const Tap& tap : taps_)
      offsets.push_back(static_cast<uint32_t>(channel * channel_floats() +
                                              tap.plane * plane_floats_ + tap.offset));
  return offsets;
}

void TapPlan::list_inputs() {
  for (int64_t t = 0; t < tiles(); ++t)
    for (const PixelPlane& plane : planes_)
      plane_runs_.push_back(list_plane(plane, first(t) - lead_));
}

/// Pixels [first, first + plane_floats) of the plane, counted in rows of `pitch`.
PlaneRuns TapPlan::list_plane(const PixelPlane& plane, int64_t first) {
  const Window& w = window_;
  const size_t runs_begin = inputs_.size(), groups_begin = groups_.size();
  int64_t x = floor_mod(first, pitch_), row = (first - x) / pitch_;
  for (int64_t at = 0; at < plane_floats_; ++row, x = 0) {
    const int64_t n = std::min(plane_floats_ - at, pitch_ - x);
    const int64_t image_row = row * w.stride_height + plane.row_phase - w.pad_top;
    const int64_t begin = std::clamp<int64_t>(plane.begin - x, 0, n);
    const int64_t end = std::clamp<int64_t>(plane.end - x, begin, n);
    const int64_t p = image_row * w.width + (x + begin) * w.stride_width + plane.column - w.pad_left;
    if (image_row >= 0 && image_row < w.height && begin < end)
      add_runs(inputs_, runs_begin, in_, p, end - begin, w.stride_width, at + begin);
    at += n;
  }
  if (w.stride_width <= 2) list_groups(runs_begin);
  return {static_cast<int32_t>(runs_begin), static_cast<int32_t>(inputs_.size()),
          static_cast<int32_t>(groups_begin), static_cast<int32_t>(groups_.size())};
}

/// Cuts the runs from there on into groups; what lies in one line of the image becomes one again.
void TapPlan::list_groups(size_t runs_begin) {
  const size_t groups_begin = groups_.size();
  for (size_t i = runs_begin; i < inputs_.size(); ++i) {
    const PixelRun& run = inputs_[i];
    const int32_t run_end = run.tile_offset + run.count;
    for (int32_t at = run.tile_offset; at < run_end;) {
      const int32_t lane = at % kLanes, tile_offset = at - lane;
      const int32_t end = std::min<int32_t>(run_end - tile_offset, kLanes);
      const int32_t lanes = (1 << end) - (1 << lane);
      const int64_t image_offset =
          run.image_offset + (tile_offset - run.tile_offset) * window_.stride_width;
      if (groups_.size() > groups_begin && groups_.back().tile_offset == tile_offset &&
          groups_.back().image_offset == image_offset &&
          groups_.back().channel_stride == run.channel_stride) {
        groups_.back().lanes |= lanes;
      } else {
        groups_.push_back({image_offset, run.channel_stride, tile_offset, lanes});
      }
      at = tile_offset + end;
    }
  }
}

void TapPlan::list_outputs() {
  for (int64_t t = 0; t < tiles(); ++t) {
    const size_t begin = outputs_.size();
    output_begin_.push_back(begin);
    int64_t row = first(t) / pitch_, x = first(t) % pitch_;
    for (int64_t at = 0; at < valid(t); at += pitch_ - x, ++row, x = 0) {
      const int64_t n = std::min(valid(t) - at, window_.out_width - x);
      if (n > 0) add_runs(outputs_, begin, out_, row * window_.out_width + x, n, 1, at);
    }
    // What a run overwrites behind itself must be written by the tile's own later runs.
    for (size_t i = outputs_.size(), follow = 0; i-- > begin;) {
      PixelRun& run = outputs_[i];
      const bool adjacent = i + 1 < outputs_.size() &&
                            outputs_[i + 1].image_offset == run.image_offset + run.count &&
                            outputs_[i + 1].channel_stride == run.channel_stride;
      if (!adjacent) follow = 0;
      run.may_overrun = round_up(run.count, kLanes) - run.count <= static_cast<int64_t>(follow);
      follow += run.count;
    }
  }
  output_begin_.push_back(outputs_.size());
}

PackJob TapPlan::pack_job(int64_t t, const float* x, int64_t begin, int64_t end,
                          float* taps) const {
  const int64_t planes = static_cast<int64_t>(planes_.size());
  const int64_t channel = in_.layout == Layout::nchw ? in_.plane.positions() : kLanes;
  const int64_t margin = (32 + channel - 1) / std::max<int64_t>(channel, 1);
  return {inputs_.data(), groups_.data(), plane_runs_.data() + t * planes, planes, plane_floats_,
          window_.stride_width, x, begin, end, in_.channels, margin, taps, 0};
}

StageJob TapPlan::stage_job(int64_t t, float* stage, float* y) const {
  StageJob job{};
  job.runs = outputs_.data() + output_begin_[t];
  job.run_count = static_cast<int64_t>(output_begin_[t + 1] - output_begin_[t]);
  job.stage = stage;
  job.width = width(t);
  job.y = y;
  if (out_.layout == Layout::blocked && t + 1 == tiles()) {
    const int64_t positions = out_.plane.positions(), last = out_.plane.tiles() - 1;
    job.padding_offset = out_.index(0, 0, positions - 1) + 1;
    job.padding_count = out_.plane.padded() - positions;
    job.padding_stride = out_.channel_stride(last);
  }
  return job;
}

}  // namespace st3fx

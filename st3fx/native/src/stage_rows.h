// Between a tile in working memory, where rows of outputs have gaps, and an image without them.
// Included by the instruction-set files. What is copied where is worked out in `taps.cpp`.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

static void gather_rows(const StageJob& job) {
  for (int64_t k = job.row_begin; k < job.row_end; ++k) {
    for (int64_t r = 0; r < job.run_count; ++r) {
      const PixelRun& run = job.runs[r];
      const float* from = job.y + run.image_offset + k * run.channel_stride;
      copy_exactly(job.stage + (k - job.stage_row) * job.width + run.tile_offset, from, run.count);
    }
  }
}

static void scatter_rows(const StageJob& job) {
  for (int64_t k = job.row_begin; k < job.row_end; ++k) {
    const float* stage = job.stage + (k - job.stage_row) * job.width;
    for (int64_t r = 0; r < job.run_count; ++r) {
      const PixelRun& run = job.runs[r];
      float* to = job.y + run.image_offset + k * run.channel_stride;
      if (run.may_overrun) {
        copy(to, stage + run.tile_offset, run.count);
      } else {
        copy_exactly(to, stage + run.tile_offset, run.count);
      }
    }
    fill(job.y + job.padding_offset + k * job.padding_stride, 0, job.padding_count);
  }
}

}  // namespace st3fx::ST3FX_ISA

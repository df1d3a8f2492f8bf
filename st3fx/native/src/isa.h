// All kernels of one instruction set. An instruction-set file sets ST3FX_ISA and includes this.
#pragma once

#include "elementwise.h"
#include "kernels.h"
#include "pack_taps.h"
#include "sparse_tile.h"
#include "stage_rows.h"
#include "window_tile.h"

namespace st3fx::ST3FX_ISA {

extern const Kernels kernels;
const Kernels kernels{sparse_tile, sparse_dot, window_tile, pack_taps, gather_rows,
                      scatter_rows, add, scale, sum, transpose,
                      multiply_adds};

}  // namespace st3fx::ST3FX_ISA

#define ST3FX_ISA quant_avx2
#include "quant_tile.h"

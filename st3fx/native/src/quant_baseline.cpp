#define ST3FX_ISA quant_baseline
#include "quant_tile.h"

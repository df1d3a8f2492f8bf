#define ST3FX_ISA avx512vnni
#include "quant_tile.h"

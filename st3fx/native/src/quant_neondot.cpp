#define ST3FX_ISA neondot
#include "quant_tile.h"

#define ST3FX_ISA avxvnni
#include "quant_tile.h"

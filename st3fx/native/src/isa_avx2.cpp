#define ST3FX_ISA avx2
#include "isa.h"

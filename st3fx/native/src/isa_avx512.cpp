#define ST3FX_ISA avx512
#include "isa.h"

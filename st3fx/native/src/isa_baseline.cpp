#define ST3FX_ISA baseline
#include "isa.h"

#define KERNELS avx512_kernels
#include "latent_kernels.h"

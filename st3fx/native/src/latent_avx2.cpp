#define KERNELS avx2_kernels
#include "latent_kernels.h"

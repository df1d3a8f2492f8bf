#define KERNELS baseline_kernels
#include "latent_kernels.h"

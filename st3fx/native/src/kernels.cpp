#include "kernels.h"

namespace st3fx {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace baseline {
extern const Kernels kernels;
}

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512vnni:
    case Isa::avx512: return &avx512::kernels;
    case Isa::avxvnni:
    case Isa::avx2: return &avx2::kernels;
#endif
    case Isa::neondot:
    case Isa::baseline: return &baseline::kernels;
    default: return nullptr;
  }
}

}  // namespace st3fx

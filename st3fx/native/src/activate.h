// Activations on vectors. Included by the instruction-set files.
#pragma once

#include "activation.h"
#include "vec.h"

namespace st3fx::ST3FX_ISA {

ST3FX_INLINE Vec activate(Vec x, const Activation& activation) {
  switch (activation.kind) {
    case Activation::clip:
      return minimum(maximum(x, broadcast(activation.minimum)), broadcast(activation.maximum));
    case Activation::silu: return x / (broadcast(1.0F) + exponential(-x));
    case Activation::hard_swish: {
      const Vec gate = x * broadcast(1.0F / 6) + broadcast(0.5F);
      return x * minimum(maximum(gate, Vec{}), broadcast(1.0F));
    }
    default: return x;
  }
}

}  // namespace st3fx::ST3FX_ISA

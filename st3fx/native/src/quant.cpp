// Which quantized kernels an instruction set has, and the plainest ones: the reference.
#include "quant.h"

#include <algorithm>
#include <cmath>

namespace st3fx {

#if defined(__x86_64__)
namespace avx512vnni {
extern const QuantKernels quant_kernels;
}
namespace avxvnni {
extern const QuantKernels quant_kernels;
}
namespace quant_avx2 {
extern const QuantKernels quant_kernels;
}
#elif defined(__aarch64__)
namespace neondot {
extern const QuantKernels quant_kernels;
}
#endif
namespace quant_baseline {
extern const QuantKernels quant_kernels;
}

namespace {

int32_t rint_clamped(float x, int32_t minimum, int32_t maximum) {
  const float limited = std::min(x > -1e9F ? x : -1e9F, 1e9F);  // what is no number is the least
  return std::clamp(static_cast<int32_t>(std::nearbyintf(limited)), minimum, maximum);
}

uint8_t to_byte(float product, const uint8_t* residual, const Requantize& how) {
  const int32_t q = rint_clamped(product, how.minimum - how.zero_point,
                                 how.maximum - how.zero_point) + how.zero_point;
  if (!residual) return static_cast<uint8_t>(q);
  const float sum = static_cast<float>(q) * how.sum_factor +
                    static_cast<float>(*residual) * how.residual_factor + how.offset;
  return static_cast<uint8_t>(rint_clamped(sum, how.sum_minimum, how.sum_maximum));
}

const uint8_t* bytes(const float* quads) { return reinterpret_cast<const uint8_t*>(quads); }
uint8_t* bytes(float* quads) { return reinterpret_cast<uint8_t*>(quads); }

float activated(float x, const Activation& activation) {
  switch (activation.kind) {
    case Activation::clip: return std::min(std::max(x, activation.minimum), activation.maximum);
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::hard_swish: return x * std::min(std::max(x / 6 + 0.5F, 0.0F), 1.0F);
    default: return x;
  }
}

void sparse_tile(const QuantTileJob& job) {
  for (int64_t row = 4 * job.quad_begin; row < 4 * job.quad_end; ++row) {
    for (int64_t p = 0; p < job.width; ++p) {
      int32_t sum = job.bias[row];
      for (uint32_t i = job.row_start[row]; i < job.row_start[row + 1]; ++i) {
        const QuantBlock& block = job.blocks[i];
        const uint8_t* x = bytes(job.taps) + block.offset * job.offset_bytes + 4 * p;
        for (int c = 0; c < 4; ++c)
          sum += x[c] * static_cast<int8_t>(static_cast<uint32_t>(block.weights) >> 8 * c);
      }
      const float product = static_cast<float>(sum) * job.multiplier[row];
      if (job.real_out) {
        job.real_out[row * job.width + p] =
            activated(product + job.real_bias[row], job.activation);
        continue;
      }
      const int64_t at = 4 * (row / 4 * job.row_stride + p) + row % 4;
      const uint8_t* residual = job.residual ? bytes(job.residual) + at : nullptr;
      bytes(job.out)[at] = to_byte(product, residual, *job.requantize);
    }
  }
}

void window_tile(const QuantWindowJob& job) {
  for (int64_t quad = 0; quad < job.quads; ++quad)
    for (int64_t p = 0; p < job.width; ++p)
      for (int c = 0; c < 4; ++c) {
        const uint8_t* x = bytes(job.taps + quad * job.quad_floats + p) + c;
        const int64_t at = 4 * (quad * job.row_stride + p) + c;
        if (job.kind == QuantWindowJob::largest) {
          uint8_t found = 0;
          for (int64_t t = 0; t < job.tap_count; ++t)
            found = std::max(found, x[4 * static_cast<int64_t>(job.tap_offsets[t])]);
          bytes(job.out)[at] = found;
          continue;
        }
        int32_t sum = job.bias[4 * quad + c];
        const int8_t* weights = job.weights + quad * 4 * job.tap_count * job.halves;
        for (int64_t half = 0; half < job.halves; ++half, weights += 4 * job.tap_count)
          for (int64_t t = 0; t < job.tap_count; ++t)
            sum += x[4 * static_cast<int64_t>(job.tap_offsets[t])] *
                   weights[t / 4 * 16 + 4 * c + t % 4];
        const float factor =
            job.position_factor ? job.position_factor[p] : job.multiplier[4 * quad + c];
        const uint8_t* residual = job.residual ? bytes(job.residual) + at : nullptr;
        bytes(job.out)[at] =
            to_byte(static_cast<float>(sum) * factor, residual, *job.requantize);
      }
}

void add(const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t n, const Requantize& how) {
  for (int64_t i = 0; i < n; ++i) {
    const float sum = static_cast<float>(a[i]) * how.sum_factor +
                      static_cast<float>(b[i]) * how.residual_factor + how.offset;
    y[i] = static_cast<uint8_t>(rint_clamped(sum, how.sum_minimum, how.sum_maximum));
  }
}

void quantize(const float* x, float scale, int32_t zero_point, uint8_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    y[i] = static_cast<uint8_t>(
        rint_clamped(x[i] / scale, -zero_point, 255 - zero_point) + zero_point);
}

void to_quads(const uint8_t* const channels[4], uint8_t* quads, int64_t n) {
  for (int64_t i = 0; i < 4 * n; ++i) quads[i] = channels[i % 4][i / 4];
}

void dequantize(const uint8_t* x, float scale, int32_t zero_point, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[4 * i] - zero_point) * scale;
}

void sum_quads(const float* x, int64_t n, int64_t sums[4]) {
  for (int64_t i = 0; i < 4 * n; ++i) sums[i % 4] += bytes(x)[i];
}

void scale_quads(const float* x, int32_t x_zero_point, const int32_t factor[4], float scale,
                 float* y, int64_t n, const Requantize& how) {
  for (int64_t i = 0; i < 4 * n; ++i) {
    const int32_t product = (bytes(x)[i] - x_zero_point) * factor[i % 4];
    bytes(y)[i] = to_byte(static_cast<float>(product) * scale, nullptr, how);
  }
}

void range(const float* x, int64_t n, float* least, float* largest) {
  *least = *largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    *least = std::min(*least, x[i]);
    *largest = std::max(*largest, x[i]);
  }
}

const QuantKernels scalar_kernels{0,   false,    16,       1 << 20,    sparse_tile, window_tile,
                                  add, quantize, to_quads, dequantize, sum_quads,   scale_quads,
                                  range};

}  // namespace

const QuantKernels& quant_kernels_of(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512vnni: return avx512vnni::quant_kernels;
    case Isa::avxvnni: return avxvnni::quant_kernels;
    case Isa::avx512:
    case Isa::avx2: return quant_avx2::quant_kernels;
#elif defined(__aarch64__)
    case Isa::neondot: return neondot::quant_kernels;
#endif
    case Isa::scalar: return scalar_kernels;
    default: return quant_baseline::quant_kernels;
  }
}

}  // namespace st3fx

// Quantized operators without a window: sums, tables, pools of whole images, channels, layouts.
#pragma once

#include <array>
#include <vector>

#include "quad_matrix.h"

namespace st3fx {

class QuantAdd {
 public:
  explicit QuantAdd(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const QuantKernels& kernels_;
  Requantize how_;
};

class QuantLookup {
 public:
  explicit QuantLookup(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  std::array<uint8_t, 256> table_;
};

class QuantGlobalAveragePool {
 public:
  explicit QuantGlobalAveragePool(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const QuantKernels& kernels_;
  int64_t channels_;
  int32_t x_zero_point_;
  float factor_;
  Requantize how_;
};

class QuantScale {
 public:
  explicit QuantScale(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const QuantKernels& kernels_;
  int64_t channels_;
  int32_t x_zero_point_, s_zero_point_;
  float factor_;
  Requantize how_;
};

class QuantChannels {
 public:
  explicit QuantChannels(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  struct Source {
    size_t input;
    int64_t channel;  ///< Of it.
  };

  Shape channels_;
  std::vector<Source> sources_;  ///< Of each output channel.
  std::vector<uint8_t> tables_;  ///< 256 numbers for each input, or none.
};

class QuantizeImage {
 public:
  explicit QuantizeImage(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const QuantKernels& kernels_;
  int64_t channels_;
  float scale_;
  int32_t zero_point_;
};

class DequantizeImage {
 public:
  explicit DequantizeImage(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const QuantKernels& kernels_;
  int64_t channels_;
  float scale_;
  int32_t zero_point_;
};

class QuantLayout {
 public:
  explicit QuantLayout(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const QuantKernels& kernels_;
  int64_t channels_;
  bool to_blocked_;
};

}  // namespace st3fx

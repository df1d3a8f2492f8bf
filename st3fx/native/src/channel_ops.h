// The operators between the convolutions: sums, scaling, concatenation, changes of layout.
#pragma once

#include "kernels.h"
#include "layout.h"

namespace st3fx {

/// The mean of each channel; the output is [N, C, 1, 1].
class GlobalAveragePool {
 public:
  explicit GlobalAveragePool(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const Kernels* kernels_;
  int64_t channels_;
  Layout layout_;
};

/// The sum of two tensors in the same layout.
class Add {
 public:
  explicit Add(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const Kernels* kernels_;
  Activation activation_;
};

/// Each channel times a factor of its own.
class ChannelScale {
 public:
  explicit ChannelScale(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  const Kernels* kernels_;
  int64_t channels_;
  Layout layout_;
};

/// Several tensors along the channels.
class Concat {
 public:
  explicit Concat(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  Shape channels_;
  Layout layout_;
};

/// From one layout to the other.
class ChangeLayout {
 public:
  explicit ChangeLayout(const NodeInfo& node);
  void operator()(const Run& run) const;

 private:
  int64_t channels_;
  Layout from_, to_;
};

}  // namespace st3fx

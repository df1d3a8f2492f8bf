// ONNX Runtime as the operators see it: attributes, constants, tensors, threads, errors.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace st3fx {

using Shape = std::vector<int64_t>;

/// A mistake in a model or its inputs. The message reaches the user through ONNX Runtime.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// "[1, 64, 56, 56]"
std::string to_string(const Shape& shape);

int64_t count(const Shape& shape);

/// A tensor of ONNX Runtime's, which owns the memory.
struct Tensor {
  Shape shape;
  int type = 0;
  const void* data = nullptr;

  const float* floats() const { return static_cast<const float*>(data); }
};

/// Shape, type and memory of one of ONNX Runtime's tensors.
Tensor describe(const ort::Api* api, const ort::Value* value);

/// What a node of the graph says when its kernel is created.
class NodeInfo {
 public:
  NodeInfo(const ort::Api* api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  std::string name() const;
  size_t input_count() const;
  int64_t integer(const char* name, int64_t fallback) const;
  int64_t required_integer(const char* name) const;
  float number(const char* name, float fallback) const;
  std::string text(const char* name, const char* fallback) const;
  /// As many numbers as `fallback` has, unless that is empty.
  Shape integers(const char* name, const Shape& fallback) const;

  /// The constant tensor at that input; an error where it is absent or computed.
  Tensor constant(size_t input, const char* what, int type) const;
  std::optional<Tensor> optional_constant(size_t input, const char* what, int type) const;

 private:
  const ort::Api* api_;
  const ort::KernelInfo* info_;
};

/// One run of one node.
class Run {
 public:
  Run(const ort::Api* api, ort::KernelContext* context) : api_(api), context_(context) {}

  size_t input_count() const;
  Tensor input(size_t index) const;
  std::optional<Tensor> optional_input(size_t index) const;
  float* output(const Shape& shape) const;

  /// Calls `task(0)` … `task(count - 1)` on the session's own threads, in any order.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& task) const;

 private:
  const ort::Api* api_;
  ort::KernelContext* context_;
};

/// Throws what a failed status says, and releases it.
void check(const ort::Api* api, ort::Status* status);

/// The status that carries an exception's message.
ort::Status* status_of(const ort::Api* api, const std::string& where, const std::exception& error);

}  // namespace st3fx

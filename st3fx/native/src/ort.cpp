#include "ort.h"

#include <exception>
#include <mutex>

namespace st3fx {
namespace {

using ort::Api;
using ort::Status;
using ort::Value;

struct ParallelTask {
  const std::function<void(int64_t)>& run;
  std::mutex mutex;
  std::exception_ptr error;
};

void run_task(void* argument, size_t index) {
  auto* task = static_cast<ParallelTask*>(argument);
  try {
    task->run(static_cast<int64_t>(index));
  } catch (...) {  // must not pass through ONNX Runtime's threads
    std::lock_guard<std::mutex> lock(task->mutex);
    task->error = std::current_exception();
  }
}

}  // namespace

Tensor describe(const Api* api, const Value* value) {
  Tensor tensor;
  ort::ShapeInfo* info = nullptr;
  check(api, ort::call(api, ort::kGetTensorTypeAndShape, value, &info));
  size_t rank = 0;
  Status* status = ort::call(api, ort::kGetDimensionsCount, info, &rank);
  if (!status) {
    tensor.shape.resize(rank);
    status = ort::call(api, ort::kGetDimensions, info, tensor.shape.data(), rank);
  }
  if (!status) status = ort::call(api, ort::kGetTensorElementType, info, &tensor.type);
  ort::call<void>(api, ort::kReleaseTensorTypeAndShapeInfo, info);
  check(api, status);
  void* data = nullptr;
  check(api, ort::call(api, ort::kGetTensorMutableData, value, &data));
  tensor.data = data;
  return tensor;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

int64_t count(const Shape& shape) {
  int64_t product = 1;
  for (int64_t size : shape) product *= size;
  return product;
}

void check(const Api* api, Status* status) {
  if (!status) return;
  std::string message = ort::call<const char*>(api, ort::kGetErrorMessage, status);
  ort::call<void>(api, ort::kReleaseStatus, status);
  throw Error(message);
}

Status* status_of(const Api* api, const std::string& where, const std::exception& error) {
  const std::string message = "st3fx: " + where + ": " + error.what();
  const bool ours = dynamic_cast<const Error*>(&error);
  const int code = ours ? ort::kInvalidArgument : ort::kFail;
  return ort::call(api, ort::kCreateStatus, code, message.c_str());
}

size_t Run::input_count() const {
  size_t number = 0;
  check(api_, ort::call(api_, ort::kKernelContextGetInputCount, context_, &number));
  return number;
}

std::optional<Tensor> Run::optional_input(size_t index) const {
  if (index >= input_count()) return std::nullopt;
  const Value* value = nullptr;
  check(api_, ort::call(api_, ort::kKernelContextGetInput, context_, index, &value));
  if (!value) return std::nullopt;
  return describe(api_, value);
}

Tensor Run::input(size_t index) const {
  std::optional<Tensor> tensor = optional_input(index);
  if (!tensor) throw Error("input " + std::to_string(index) + " is missing");
  return *tensor;
}

float* Run::output(const Shape& shape) const {
  Value* value = nullptr;
  check(api_, ort::call(api_, ort::kKernelContextGetOutput, context_, size_t{0}, shape.data(),
                        shape.size(), &value));
  void* data = nullptr;
  check(api_, ort::call(api_, ort::kGetTensorMutableData, value, &data));
  return static_cast<float*>(data);
}

void Run::parallel_for(int64_t count, const std::function<void(int64_t)>& task) const {
  if (count == 1) return task(0);
  ParallelTask shared{task, {}, nullptr};
  // The zero lets ONNX Runtime choose how many tasks a thread takes at a time.
  check(api_, ort::call(api_, ort::kKernelContextParallelFor, context_, &run_task,
                        static_cast<size_t>(count), size_t{0}, static_cast<void*>(&shared)));
  if (shared.error) std::rethrow_exception(shared.error);
}

}  // namespace st3fx

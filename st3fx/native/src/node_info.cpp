#include "ort.h"

namespace st3fx {
namespace {

using ort::Status;
using ort::Value;

/// Whether an attribute could be read; one that is absent is no error here.
bool succeeded(const ort::Api* api, Status* status) {
  if (!status) return true;
  ort::call<void>(api, ort::kReleaseStatus, status);
  return false;
}

}  // namespace

std::string NodeInfo::name() const {
  size_t size = 0;
  succeeded(api_, ort::call(api_, ort::kKernelInfoGetNodeName, info_, (char*)nullptr, &size));
  std::string name(size, '\0');
  if (!size) return name;
  if (!succeeded(api_, ort::call(api_, ort::kKernelInfoGetNodeName, info_, name.data(), &size)))
    return "";
  name.resize(size - 1);  // without the final zero
  return name;
}

size_t NodeInfo::input_count() const {
  size_t number = 0;
  check(api_, ort::call(api_, ort::kKernelInfoGetInputCount, info_, &number));
  return number;
}

int64_t NodeInfo::integer(const char* name, int64_t fallback) const {
  int64_t value = 0;
  Status* status = ort::call(api_, ort::kKernelInfoGetAttributeInt64, info_, name, &value);
  return succeeded(api_, status) ? value : fallback;
}

int64_t NodeInfo::required_integer(const char* name) const {
  const int64_t value = integer(name, 0);
  if (value < 1 || value > (1 << 24))
    throw Error(std::string("attribute '") + name + "' is missing or out of range");
  return value;
}

float NodeInfo::number(const char* name, float fallback) const {
  float value = 0;
  Status* status = ort::call(api_, ort::kKernelInfoGetAttributeFloat, info_, name, &value);
  return succeeded(api_, status) ? value : fallback;
}

std::string NodeInfo::text(const char* name, const char* fallback) const {
  size_t size = 0;
  succeeded(api_, ort::call(api_, ort::kKernelInfoGetAttributeString, info_, name, (char*)nullptr,
                            &size));
  if (!size) return fallback;
  std::string value(size, '\0');
  check(api_,
        ort::call(api_, ort::kKernelInfoGetAttributeString, info_, name, value.data(), &size));
  value.resize(size - 1);
  return value;
}

Shape NodeInfo::integers(const char* name, const Shape& fallback) const {
  size_t size = 0;
  const bool present = succeeded(
      api_, ort::call(api_, ort::kKernelInfoGetAttributeArrayInt64, info_, name, (int64_t*)nullptr,
                      &size));
  if (!present || !size) return fallback;
  Shape values(size);
  check(api_, ort::call(api_, ort::kKernelInfoGetAttributeArrayInt64, info_, name, values.data(),
                        &size));
  if (!fallback.empty() && size != fallback.size())
    throw Error(std::string("attribute '") + name + "' needs " + std::to_string(fallback.size()) +
                " numbers, not " + std::to_string(size));
  return values;
}

std::optional<Tensor> NodeInfo::optional_constant(size_t input, const char* what, int type) const {
  if (input >= input_count()) return std::nullopt;
  int is_constant = 0;
  const Value* value = nullptr;
  check(api_, ort::call(api_, ort::kKernelInfoGetConstantInputTensor, info_, input, &is_constant,
                        &value));
  if (!is_constant || !value) return std::nullopt;
  Tensor tensor = describe(api_, value);
  if (type != ort::kAnyType && tensor.type != type)
    throw Error(std::string("input '") + what + "' has a wrong element type");
  return tensor;
}

Tensor NodeInfo::constant(size_t input, const char* what, int type) const {
  std::optional<Tensor> tensor = optional_constant(input, what, type);
  if (!tensor) throw Error(std::string("input '") + what + "' must be a constant initializer");
  return *tensor;
}

}  // namespace st3fx

// A stand-in for ONNX Runtime: just enough of its function table to create kernels and run them, with
// threads that a sanitizer can watch, on any CPU that an emulator can play.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "../../st3fx/native/src/ort_abi.h"

namespace fake {

namespace abi = st3fx::ort;

struct Value {
  std::vector<int64_t> shape;
  int type = abi::kFloat;
  std::vector<float> floats;
  std::vector<int32_t> integers;
  std::vector<uint16_t> shorts;
  std::vector<uint8_t> bytes;

  void* data() {
    if (type == abi::kFloat) return floats.data();
    if (type == abi::kUint8 || type == abi::kInt8) return bytes.data();
    return type == abi::kInt32 ? static_cast<void*>(integers.data()) : shorts.data();
  }
};

/// A node: its attributes, and its inputs with null for what is fed later or absent.
struct Node {
  std::map<std::string, std::vector<int64_t>> integers;
  std::map<std::string, float> numbers;
  std::map<std::string, std::string> texts;
  std::vector<Value*> constants;
};

struct Call {
  std::vector<Value*> inputs;
  Value output;
  Value* overwritten = nullptr;  ///< An input whose memory the output gets.
  int threads = 1;
};

struct Status {
  std::string message;
};

template <class To, class From>
To* as(From* pointer) {
  return reinterpret_cast<To*>(const_cast<std::remove_const_t<From>*>(pointer));
}

inline Status* create_status(int, const char* message) { return new Status{message}; }
inline const char* message_of(const Status* status) { return status->message.c_str(); }
inline void release_status(Status* status) { delete status; }

inline Status* data_of(Value* value, void** data) {
  *data = value->data();
  return nullptr;
}
inline Status* info_of(Value* value, Value** info) {
  *info = value;
  return nullptr;
}
inline void release_info(Value*) {}
inline Status* type_of(Value* info, int* type) {
  *type = info->type;
  return nullptr;
}
inline Status* rank_of(Value* info, size_t* rank) {
  *rank = info->shape.size();
  return nullptr;
}
inline Status* sizes_of(Value* info, int64_t* sizes, size_t rank) {
  std::copy_n(info->shape.data(), rank, sizes);
  return nullptr;
}

inline Status* integer(const Node* node, const char* name, int64_t* value) {
  const auto found = node->integers.find(name);
  if (found == node->integers.end()) return new Status{"absent"};
  *value = found->second[0];
  return nullptr;
}
inline Status* number(const Node* node, const char* name, float* value) {
  const auto found = node->numbers.find(name);
  if (found == node->numbers.end()) return new Status{"absent"};
  *value = found->second;
  return nullptr;
}
inline Status* text(const Node* node, const char* name, char* value, size_t* size) {
  const auto found = node->texts.find(name);
  if (found == node->texts.end()) return new Status{"absent"};
  if (value) std::memcpy(value, found->second.c_str(), found->second.size() + 1);
  *size = found->second.size() + 1;
  return nullptr;
}
inline Status* integers(const Node* node, const char* name, int64_t* values, size_t* size) {
  const auto found = node->integers.find(name);
  if (found == node->integers.end()) return new Status{"absent"};
  if (values) std::copy(found->second.begin(), found->second.end(), values);
  *size = found->second.size();
  return nullptr;
}
inline Status* node_name(const Node*, char* name, size_t* size) {
  if (name) std::memcpy(name, "node", 5);
  *size = 5;
  return nullptr;
}
inline Status* node_inputs(const Node* node, size_t* number) {
  *number = node->constants.size();
  return nullptr;
}
inline Status* constant(const Node* node, size_t index, int* is_constant, Value** value) {
  *value = node->constants[index];
  *is_constant = *value != nullptr;
  return nullptr;
}

inline Status* call_inputs(const Call* call, size_t* number) {
  *number = call->inputs.size();
  return nullptr;
}
inline Status* call_input(const Call* call, size_t index, Value** value) {
  *value = call->inputs[index];
  return nullptr;
}
inline Status* call_output(Call* call, size_t, const int64_t* sizes, size_t rank, Value** value) {
  call->output.shape.assign(sizes, sizes + rank);
  if (call->overwritten) {
    if (call->overwritten->shape != call->output.shape) return new Status{"not of one shape"};
    *value = call->overwritten;
    return nullptr;
  }
  size_t count = 1;
  for (int64_t size : call->output.shape) count *= static_cast<size_t>(size);
  if (call->output.type == abi::kUint8)
    call->output.bytes.assign(count, 0);
  else
    call->output.floats.assign(count, 0.0F);
  *value = &call->output;
  return nullptr;
}
inline Status* parallel_for(const Call* call, void (*task)(void*, size_t), size_t total, size_t,
                            void* argument) {
  std::vector<std::thread> threads;
  for (int t = 0; t < call->threads; ++t)
    threads.emplace_back([=] {
      for (size_t i = static_cast<size_t>(t); i < total; i += static_cast<size_t>(call->threads))
        task(argument, i);
    });
  for (std::thread& thread : threads) thread.join();
  return nullptr;
}

/// The operators that the library registered.
inline std::vector<const abi::CustomOp*>& operators() {
  static std::vector<const abi::CustomOp*> all;
  return all;
}
inline Status* create_domain(const char*, void** domain) {
  *domain = &operators();
  return nullptr;
}
inline Status* add_operator(void*, const abi::CustomOp* op) {
  operators().push_back(op);
  return nullptr;
}
inline Status* add_domain(void*, void*) { return nullptr; }
inline Status* has_entry(const void*, const char*, int* there) {
  *there = 0;
  return nullptr;
}
inline Status* add_entry(void*, const char*, const char*) { return nullptr; }

inline const abi::Api* api(uint32_t) {
  static abi::Api table = [] {
    abi::Api t{};
    auto put = [&](int slot, auto* function) { t.function[slot] = reinterpret_cast<void*>(function); };
    put(abi::kCreateStatus, create_status);
    put(abi::kGetErrorMessage, message_of);
    put(abi::kReleaseStatus, release_status);
    put(abi::kCreateCustomOpDomain, create_domain);
    put(abi::kCustomOpDomainAdd, add_operator);
    put(abi::kAddCustomOpDomain, add_domain);
    put(abi::kHasSessionConfigEntry, has_entry);
    put(abi::kAddSessionConfigEntry, add_entry);
    put(abi::kGetTensorMutableData, data_of);
    put(abi::kGetTensorTypeAndShape, info_of);
    put(abi::kReleaseTensorTypeAndShapeInfo, release_info);
    put(abi::kGetTensorElementType, type_of);
    put(abi::kGetDimensionsCount, rank_of);
    put(abi::kGetDimensions, sizes_of);
    put(abi::kKernelInfoGetAttributeInt64, integer);
    put(abi::kKernelInfoGetAttributeFloat, number);
    put(abi::kKernelInfoGetAttributeString, text);
    put(abi::kKernelInfoGetAttributeArrayInt64, integers);
    put(abi::kKernelInfoGetNodeName, node_name);
    put(abi::kKernelInfoGetInputCount, node_inputs);
    put(abi::kKernelInfoGetConstantInputTensor, constant);
    put(abi::kKernelContextGetInputCount, call_inputs);
    put(abi::kKernelContextGetInput, call_input);
    put(abi::kKernelContextGetOutput, call_output);
    put(abi::kKernelContextParallelFor, parallel_for);
    return t;
  }();
  return &table;
}

}  // namespace fake

// The few declarations of ONNX Runtime's C interface that the operators need, written by us.
//
// That interface is a table of functions that only ever grows at its end, so a function is its
// index; a custom operator is a table of callbacks that only grows at its end too. Both are as of
// API version 18 (ONNX Runtime 1.18), which every later release gives on request.
#pragma once

#include <cstddef>
#include <cstdint>

namespace st3fx::ort {

constexpr uint32_t kApiVersion = 18;

// Opaque objects of ONNX Runtime.
struct Status;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;
struct Domain;
struct SessionOptions;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

enum ElementType : int {
  kAnyType = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt32 = 6,
  kInt64 = 7,
  kUint32 = 12,
};

struct Api {
  void* function[310];
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

/// Index of a function in the table.
enum Slot : int {
  kCreateStatus = 0,
  kGetErrorMessage = 2,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelInfoGetAttributeString = 87,
  kKernelContextGetInputCount = 88,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kAddSessionConfigEntry = 130,
  kKernelInfoGetAttributeArrayInt64 = 163,
  kKernelInfoGetInputCount = 230,
  kHasSessionConfigEntry = 237,
  kKernelInfoGetNodeName = 244,
  kKernelInfoGetConstantInputTensor = 249,
  kKernelContextParallelFor = 274,
};

/// Calls the function of that index, which returns a status or nothing.
template <class Result = Status*, class... Arguments>
inline Result call(const Api* api, Slot slot, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(api->function[slot])(arguments...);
}

/// A custom operator. ONNX Runtime reads only the fields that `version` had.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider)(const CustomOp*);
  int (*get_input_type)(const CustomOp*, size_t index);
  size_t (*get_input_count)(const CustomOp*);
  int (*get_output_type)(const CustomOp*, size_t index);
  size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void* kernel, KernelContext*);
  void (*destroy)(void* kernel);
  int (*get_input_characteristic)(const CustomOp*, size_t index);  // 0 required, 1 optional
  int (*get_output_characteristic)(const CustomOp*, size_t index);
  int (*get_input_memory_type)(const CustomOp*, size_t index);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  Status* (*infer_output_shape)(const CustomOp*, void*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  size_t (*get_may_inplace)(int** inputs, int** outputs);
  void (*release_may_inplace)(int* inputs, int* outputs);
  size_t (*get_alias_map)(int** inputs, int** outputs);
  void (*release_alias_map)(int* inputs, int* outputs);
};

}  // namespace st3fx::ort

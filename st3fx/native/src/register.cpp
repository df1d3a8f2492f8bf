// The table of operators, and the one function that ONNX Runtime calls.
#include <cstdlib>
#include <cstring>

#include "channel_ops.h"
#include "ort.h"
#include "quant_conv.h"
#include "quant_linear.h"
#include "quant_ops.h"
#include "quant_window.h"
#include "sparse_conv.h"
#include "sparse_linear.h"
#include "window_op.h"

namespace st3fx {
namespace {

using ort::CustomOp;

/// A custom operator with what its callbacks answer.
struct Operator : CustomOp {
  const char* name;
  size_t inputs;
  size_t required;  ///< The first so many inputs must be there.
};

const Operator& self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

/// A kernel and the table of functions that it was created with.
template <class Kernel>
struct Instance {
  const ort::Api* api;
  std::string name;
  Kernel kernel;
};

template <class Kernel>
ort::Status* create(const CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                    void** kernel) {
  std::string where = self(op).name;
  try {
    const NodeInfo node(api, info);
    where += " '" + node.name() + "'";
    *kernel = new Instance<Kernel>{api, where, Kernel(node)};
    return nullptr;
  } catch (const std::exception& error) {
    return status_of(api, where, error);
  }
}

template <class Kernel>
ort::Status* compute(void* kernel, ort::KernelContext* context) {
  const auto* instance = static_cast<const Instance<Kernel>*>(kernel);
  try {
    instance->kernel(Run(instance->api, context));
    return nullptr;
  } catch (const std::exception& error) {
    return status_of(instance->api, instance->name, error);
  }
}

/// The output may be the memory of that input.
template <int input>
size_t may_inplace(int** inputs, int** outputs) {
  *inputs = static_cast<int*>(std::malloc(sizeof(int)));
  *outputs = static_cast<int*>(std::malloc(sizeof(int)));
  if (!*inputs || !*outputs) return 0;
  **inputs = input;
  **outputs = 0;
  return 1;
}

/// An operator of float32 tensors whose inputs from `required` on are optional.
template <class Kernel>
Operator make(const char* name, size_t inputs, size_t required) {
  Operator op{};
  op.version = ort::kApiVersion;
  op.name = name;
  op.inputs = inputs;
  op.required = required;
  op.get_name = [](const CustomOp* o) { return self(o).name; };
  op.get_execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
  op.get_input_count = [](const CustomOp* o) { return self(o).inputs; };
  op.get_output_count = [](const CustomOp*) { return size_t{1}; };
  op.get_input_type = [](const CustomOp*, size_t) { return int{ort::kFloat}; };
  op.get_output_type = [](const CustomOp*, size_t) { return int{ort::kFloat}; };
  op.get_input_characteristic = [](const CustomOp* o, size_t i) {
    return i < self(o).required ? 0 : 1;
  };
  op.get_output_characteristic = [](const CustomOp*, size_t) { return 0; };
  op.get_input_memory_type = [](const CustomOp*, size_t) { return 0; };
  op.get_variadic_input_min_arity = [](const CustomOp*) { return 1; };
  op.get_variadic_input_homogeneity = [](const CustomOp*) { return 1; };
  op.get_variadic_output_min_arity = [](const CustomOp*) { return 1; };
  op.get_variadic_output_homogeneity = [](const CustomOp*) { return 1; };
  op.get_start_version = [](const CustomOp*) { return 1; };
  op.get_end_version = [](const CustomOp*) { return 0x7fffffff; };
  op.create_kernel_v2 = create<Kernel>;
  op.compute_v2 = compute<Kernel>;
  op.destroy = [](void* kernel) { delete static_cast<Instance<Kernel>*>(kernel); };
  return op;
}

/// Inputs 1 to 3 are sparse weights.
Operator with_sparse_weights(Operator op) {
  op.get_input_type = [](const CustomOp*, size_t i) {
    return int{i == 2 ? ort::kAnyType : i == 3 ? ort::kInt32 : ort::kFloat};
  };
  return op;
}

/// Inputs 1 to 3 are sparse blocks, from `bias` on other constants.
template <int images = ort::kUint8, int bias = ort::kInt32>
Operator with_sparse_blocks(Operator op) {
  op.get_input_type = [](const CustomOp*, size_t i) {
    return int{i == 1   ? ort::kInt8
               : i == 2 ? ort::kAnyType
               : i == 3 ? ort::kInt32
               : i == 4 ? bias
               : i == 5 ? ort::kFloat
                        : images};
  };
  op.get_output_type = [](const CustomOp*, size_t) { return int{images}; };
  return op;
}

/// From tensors of one type to another.
template <int input, int output>
Operator with_types(Operator op) {
  op.get_input_type = [](const CustomOp*, size_t) { return int{input}; };
  op.get_output_type = [](const CustomOp*, size_t) { return int{output}; };
  return op;
}

Operator with_depthwise_bytes(Operator op) {
  op.get_input_type = [](const CustomOp*, size_t i) {
    return int{i == 1 ? ort::kInt8 : i == 2 ? ort::kInt32 : i == 3 ? ort::kFloat : ort::kUint8};
  };
  op.get_output_type = [](const CustomOp*, size_t) { return int{ort::kUint8}; };
  return op;
}

constexpr auto of_bytes = with_types<ort::kUint8, ort::kUint8>;

/// One input or more.
Operator with_any_inputs(Operator op) {
  op.get_input_characteristic = [](const CustomOp*, size_t) { return 2; };
  return op;
}

template <int input>
Operator in_place(Operator op) {
  op.get_may_inplace = may_inplace<input>;
  op.release_may_inplace = [](int* inputs, int* outputs) {
    std::free(inputs);
    std::free(outputs);
  };
  return op;
}

const Operator kOperators[] = {
    in_place<5>(with_sparse_weights(make<SparseConv>("SparseConv", 6, 4))),
    in_place<3>(make<DepthwiseConv>("DepthwiseConv", 4, 2)),
    with_sparse_weights(make<SparseLinear>("SparseLinear", 5, 4)),
    make<MaxPool>("ImageMaxPool", 1, 1),
    make<AveragePool>("ImageAveragePool", 1, 1),
    make<GlobalAveragePool>("ImageGlobalAveragePool", 1, 1),
    in_place<0>(make<Add>("ImageAdd", 2, 2)),
    in_place<0>(make<ChannelScale>("ChannelScale", 2, 2)),
    with_any_inputs(make<Concat>("ImageConcat", 1, 1)),
    make<ChangeLayout>("Layout", 1, 1),
    in_place<6>(with_sparse_blocks(make<QuantConv>("QuantConv", 7, 6))),
    in_place<4>(with_depthwise_bytes(make<QuantDepthwiseConv>("QuantDepthwiseConv", 5, 4))),
    with_sparse_blocks<ort::kFloat, ort::kFloat>(make<QuantLinear>("QuantLinear", 6, 4)),
    in_place<0>(of_bytes(make<QuantAdd>("QuantAdd", 2, 2))),
    in_place<0>(of_bytes(make<QuantLookup>("QuantLookup", 2, 2))),
    of_bytes(make<QuantMaxPool>("QuantMaxPool", 1, 1)),
    of_bytes(make<QuantAveragePool>("QuantAveragePool", 1, 1)),
    of_bytes(make<QuantGlobalAveragePool>("QuantGlobalAveragePool", 1, 1)),
    of_bytes(make<QuantScale>("QuantScale", 2, 2)),
    with_any_inputs(of_bytes(make<QuantChannels>("QuantChannels", 1, 1))),
    with_types<ort::kFloat, ort::kUint8>(make<QuantizeImage>("QuantizeImage", 1, 1)),
    with_types<ort::kUint8, ort::kFloat>(make<DequantizeImage>("DequantizeImage", 1, 1)),
    of_bytes(make<QuantLayout>("QuantLayout", 1, 1)),
    // As files of earlier versions call them: names of ONNX, which tools take for its operators.
    make<MaxPool>("MaxPool", 1, 1),
    make<AveragePool>("AveragePool", 1, 1),
    make<GlobalAveragePool>("GlobalAveragePool", 1, 1),
    in_place<0>(make<Add>("Add", 2, 2)),
    with_any_inputs(make<Concat>("Concat", 1, 1)),
};

/// An entry of the options that have the operators: ONNX Runtime refuses them a second time, and
/// options that serve several sessions are given them for each.
constexpr char kMark[] = "st3fx.operators";

/// The domain of the bodies which files give the operators for sessions without this library
/// (passes/onnx/sparse_kernels/hints.py): what a tool has put in their place runs too.
constexpr char kHint[] =
    "st3fx: call options.register_custom_ops_library(st3fx.runtime.library()) first, or open the "
    "file by st3fx.runtime.session(path)";

/// A body has a fixed number of inputs, the last of which may be left out.
const Operator kConcatOfBodies = make<Concat>("ImageConcat", 1024, 1);

/// A domain is never released: sessions refer to it as long as they live.
ort::Status* add_domain(const ort::Api* api, ort::SessionOptions* options, const char* name,
                        const Operator* concat) {
  ort::Domain* domain = nullptr;
  ort::Status* status = ort::call(api, ort::kCreateCustomOpDomain, name, &domain);
  for (const Operator& op : kOperators) {
    const bool replaced = concat && std::strcmp(op.name, concat->name) == 0;
    if (!status) status = ort::call(api, ort::kCustomOpDomainAdd, domain, replaced ? concat : &op);
  }
  return status ? status : ort::call(api, ort::kAddCustomOpDomain, options, domain);
}

ort::Status* add_all(const ort::Api* api, ort::SessionOptions* options) {
  int there = 0;
  ort::Status* status = ort::call(api, ort::kHasSessionConfigEntry, options, kMark, &there);
  if (status || there) return status;
  status = add_domain(api, options, "st3fx", nullptr);
  if (!status) status = add_domain(api, options, kHint, &kConcatOfBodies);
  return status ? status : ort::call(api, ort::kAddSessionConfigEntry, options, kMark, "1");
}

}  // namespace
}  // namespace st3fx

/// What `SessionOptions.register_custom_ops_library` looks for.
extern "C" __attribute__((visibility("default"))) st3fx::ort::Status* RegisterCustomOps(
    st3fx::ort::SessionOptions* options, const st3fx::ort::ApiBase* base) {
  const st3fx::ort::Api* api = base->get_api(st3fx::ort::kApiVersion);
  if (api) return st3fx::add_all(api, options);
  // Version 1 has what it takes to say no.
  return st3fx::ort::call(base->get_api(1), st3fx::ort::kCreateStatus, int{st3fx::ort::kFail},
                          "st3fx's kernels need ONNX Runtime 1.18 or newer");
}

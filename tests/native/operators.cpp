// Runs random operators of a built library on every instruction set that this CPU (or the emulator)
// has, several calls at once on several threads, and compares them with the scalar reference; then
// damaged weights, attributes and tensors, which must be refused or run, but never read what is not
// there.
//
//     operators LIBRARY [CASES [FORKS]]
//
// With FORKS the process is forked so many times while threads run operators, and each child runs one
// too: it must not wait for what a thread that it does not have holds.
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>

#include "fake_runtime.h"

namespace {

namespace abi = st3fx::ort;
using fake::Call;
using fake::Node;
using fake::Value;
using Generator = std::mt19937;

int pick(Generator& g, int low, int high) { return std::uniform_int_distribution<>(low, high)(g); }

Value normal(Generator& g, std::vector<int64_t> shape) {
  Value value;
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  value.shape = std::move(shape);
  std::normal_distribution<float> draw;
  for (int64_t i = 0; i < count; ++i) value.floats.push_back(draw(g));
  return value;
}

/// A node with everything that its kernel refers to.
struct Case {
  std::string op;
  Node node;
  Value x, weight, values, columns, starts, bias, multiplier;
  std::map<size_t, Value> fed;   ///< Inputs of a call beside the first.
  int64_t outputs = 0;           ///< Channels of a quantized image that it gives, or 0.
  bool gives_bytes = false;      ///< In no blocks, or of which all mean something.

  Case() = default;
  /// A copy whose node refers to its own constants.
  Case(const Case& from)
      : op(from.op), node(from.node), x(from.x), weight(from.weight), values(from.values),
        columns(from.columns), starts(from.starts), bias(from.bias), multiplier(from.multiplier),
        fed(from.fed), outputs(from.outputs), gives_bytes(from.gives_bytes) {
    const Value* const theirs[] = {&from.weight, &from.values, &from.columns,
                                   &from.starts, &from.bias,   &from.multiplier};
    Value* const own[] = {&weight, &values, &columns, &starts, &bias, &multiplier};
    for (Value*& constant : node.constants)
      for (int i = 0; i < 6; ++i)
        if (constant == theirs[i]) {
          constant = own[i];
          break;
        }
  }
  Case& operator=(const Case&) = delete;
};

void sparse_weights(Generator& g, Case& c, int64_t rows, int64_t columns, double density) {
  c.starts.type = abi::kInt32;
  c.columns.type = abi::kUint16;
  std::bernoulli_distribution keep(density);
  std::normal_distribution<float> draw;
  c.starts.integers.push_back(0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      if (!keep(g)) continue;
      c.columns.shorts.push_back(static_cast<uint16_t>(column));
      c.values.floats.push_back(draw(g));
    }
    c.starts.integers.push_back(static_cast<int32_t>(c.values.floats.size()));
  }
  c.values.shape = c.columns.shape = {static_cast<int64_t>(c.values.floats.size())};
  c.starts.shape = {rows + 1};
}

int64_t storage_channels(int64_t channels, int64_t positions) {
  int64_t storage = channels;
  while (storage * positions % 16 || storage * positions < (positions + 15) / 16 * 16 * channels)
    ++storage;
  return storage;
}

void fill_case(Generator& g, Case& c) {
  const char* const activations[] = {"none", "relu", "clip", "silu", "hard_swish"};
  const int64_t groups = c.op == "SparseConv" ? pick(g, 1, 2) : 1;
  const int64_t channels = groups * pick(g, 1, 40), rows = groups * pick(g, 1, 40);
  const int64_t kh = pick(g, 1, 3), kw = pick(g, 1, 3);
  const bool blocked = pick(g, 0, 1);
  const int most = pick(g, 0, 2) ? 20 : 45;  // large images are packed and shared out otherwise
  const int64_t height = pick(g, 3, most), width = pick(g, 3, most), batch = pick(g, 1, 2);
  const int64_t stored = blocked ? storage_channels(channels, height * width) : channels;
  c.node.texts["activation"] = activations[pick(g, 0, 4)];
  if (c.op == "SparseLinear") {
    c.node.integers["features"] = {channels};
    c.x = normal(g, {pick(g, 0, 1) ? 1 : pick(g, 2, 130), channels});
    sparse_weights(g, c, rows, channels, 0.3);
  } else {
    c.node.integers["channels"] = {channels};
    c.node.integers["kernel_shape"] = {kh, kw};
    c.node.integers["strides"] = {pick(g, 1, 3), pick(g, 1, 3)};
    c.node.integers["pads"] = {pick(g, 0, kh - 1), pick(g, 0, kw - 1), pick(g, 0, kh - 1),
                               pick(g, 0, kw - 1)};
    c.node.integers["group"] = {groups};
    c.node.texts["input_layout"] = blocked ? "blocked" : "nchw";
    c.x = normal(g, {batch, stored, height, width});
    if (c.op == "SparseConv") sparse_weights(g, c, rows, channels / groups * kh * kw, 0.2);
    if (c.op == "DepthwiseConv") c.weight = normal(g, {channels, 1, kh, kw});
  }
  c.bias = normal(g, {c.op == "DepthwiseConv" ? channels : rows});
  if (c.op == "DepthwiseConv") {
    c.node.constants = {nullptr, &c.weight, &c.bias};
  } else if (c.op == "ImageMaxPool" || c.op == "ImageAveragePool") {
    c.node.constants = {nullptr};
  } else {
    c.node.constants = {nullptr, &c.values, &c.columns, &c.starts, &c.bias};
  }
}

Value random_bytes(Generator& g, std::vector<int64_t> shape, int type) {
  Value value;
  value.type = type;
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  value.shape = std::move(shape);
  for (int64_t i = 0; i < count; ++i) value.bytes.push_back(static_cast<uint8_t>(pick(g, 0, 255)));
  return value;
}

Value random_integers(Generator& g, int64_t count) {
  Value value;
  value.type = abi::kInt32;
  value.shape = {count};
  for (int64_t i = 0; i < count; ++i) value.integers.push_back(pick(g, -5000, 5000));
  return value;
}

/// Blocks of four weights in place of single ones, and what makes bytes of sums.
void quantize(Generator& g, Case& c, int64_t rows) {
  c.values = random_bytes(g, {4 * c.columns.shape[0]}, abi::kInt8);
  c.multiplier = normal(g, {rows});
  for (float& number : c.multiplier.floats) number = std::fabs(number) * 1e-3F;
}

void fill_quantized(Generator& g, Case& c) {
  const int64_t channels = pick(g, 1, 70), rows = c.op == "QuantConv" ? pick(g, 1, 70) : channels;
  if (c.op == "QuantLinear") {
    const int64_t features = pick(g, 1, 90), outputs = pick(g, 1, 60);
    c.node.integers["features"] = {features};
    c.x = normal(g, {pick(g, 0, 1) ? 1 : pick(g, 2, 130), features});
    sparse_weights(g, c, outputs, (features + 3) / 4, 0.3);
    quantize(g, c, outputs);
    c.bias = normal(g, {outputs});
    if (pick(g, 0, 1)) c.node.numbers["x_scale"] = 0.02F, c.node.integers["x_zero_point"] = {100};
    c.node.constants = {nullptr, &c.values, &c.columns, &c.starts, &c.bias, &c.multiplier};
    return;
  }
  const int64_t kh = pick(g, 1, 3), kw = pick(g, 1, 3), most = pick(g, 0, 2) ? 20 : 45;
  const int64_t height = pick(g, 3, static_cast<int>(most)), width = pick(g, 3, static_cast<int>(most));
  const int64_t stored = 4 * storage_channels((channels + 3) / 4, height * width);
  c.outputs = rows;
  c.node.integers["channels"] = {channels};
  c.node.integers["kernel_shape"] = {kh, kw};
  c.node.integers["strides"] = {pick(g, 1, 3), pick(g, 1, 3)};
  c.node.integers["pads"] = {pick(g, 0, kh - 1), pick(g, 0, kw - 1), pick(g, 0, kh - 1),
                             pick(g, 0, kw - 1)};
  c.node.integers["x_zero_point"] = {pick(g, 0, 255)};
  c.node.integers["y_zero_point"] = {pick(g, 0, 255)};
  c.node.numbers["factor"] = 0.9F;
  c.x = random_bytes(g, {pick(g, 1, 2), stored, height, width}, abi::kUint8);
  c.bias = random_integers(g, rows);
  if (c.op == "QuantConv") {
    sparse_weights(g, c, rows, (channels + 3) / 4 * kh * kw, 0.2);
    quantize(g, c, rows);
    c.node.constants = {nullptr, &c.values, &c.columns, &c.starts, &c.bias, &c.multiplier};
  } else if (c.op == "QuantDepthwiseConv") {
    c.columns.shape = {0};
    quantize(g, c, rows);
    c.weight = random_bytes(g, {channels, 1, kh, kw}, abi::kInt8);
    c.node.constants = {nullptr, &c.weight, &c.bias, &c.multiplier};
  } else {
    c.node.constants = {nullptr};
  }
}

Value random_images(Generator& g, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const int64_t stored = 4 * storage_channels((channels + 3) / 4, height * width);
  return random_bytes(g, {batch, stored, height, width}, abi::kUint8);
}

/// Operators without windows and products.
void fill_simple(Generator& g, Case& c) {
  const int64_t batch = pick(g, 1, 2), channels = pick(g, 1, 40);
  const int64_t height = pick(g, 1, 20), width = pick(g, 1, 20);
  Node& node = c.node;
  node.constants = {nullptr};
  node.integers["channels"] = {channels};
  c.outputs = channels;
  c.x = random_images(g, batch, channels, height, width);
  for (const char* name : {"x_zero_point", "y_zero_point", "s_zero_point", "zero_point"})
    node.integers[name] = {pick(g, 0, 255)};
  node.integers["minimum"] = {pick(g, 0, 100)};
  node.numbers = {{"factor", 0.01F}, {"scale", 0.02F}, {"a_factor", 0.7F}, {"b_factor", -0.4F},
                  {"offset", 60.25F}};
  if (c.op == "QuantAdd") {
    c.outputs = 0, c.gives_bytes = true;
    c.fed[1] = random_bytes(g, c.x.shape, abi::kUint8);
  } else if (c.op == "QuantLookup") {
    c.outputs = 0, c.gives_bytes = true;
    c.weight = random_bytes(g, {256}, abi::kUint8);
    node.constants = {nullptr, &c.weight};
  } else if (c.op == "QuantScale") {
    c.fed[1] = random_images(g, batch, channels, 1, 1);
  } else if (c.op == "QuantChannels") {
    const int64_t second = pick(g, 1, 20);
    node.integers["channels"] = {channels, second};
    c.fed[1] = random_images(g, batch, second, height, width);
    if (pick(g, 0, 1)) {
      c.weight = random_bytes(g, {2, 256}, abi::kUint8);
      node.constants = {nullptr, nullptr, &c.weight};
    }
    c.outputs = channels + second;
    if (pick(g, 0, 1)) {
      c.outputs = pick(g, 1, 50);
      for (int64_t i = 0; i < c.outputs; ++i)
        node.integers["sources"].push_back(pick(g, 0, static_cast<int>(channels + second) - 1));
    }
  } else if (c.op == "QuantizeImage") {
    c.x = normal(g, {batch, channels, height, width});
  } else if (c.op == "DequantizeImage") {
    c.outputs = 0;
  } else if (c.op == "QuantLayout") {
    const bool to_blocks = pick(g, 0, 1);
    node.texts[to_blocks ? "output_layout" : "input_layout"] = "blocked";
    if (to_blocks) c.x = random_bytes(g, {batch, channels, height, width}, abi::kUint8);
    if (!to_blocks) c.outputs = 0, c.gives_bytes = true;
  }
  for (const auto& [index, value] : c.fed)
    if (index >= node.constants.size()) node.constants.resize(index + 1, nullptr);
}

/// Outputs of a window along one axis.
int64_t outputs_along(const Node& node, int axis, int64_t size) {
  auto of = [&](const char* name, int i) { return node.integers.at(name)[i]; };
  const int64_t room = size + of("pads", axis) + of("pads", axis + 2) - of("kernel_shape", axis);
  return room / of("strides", axis) + 1;
}

void add_residual(Generator& g, Case& c) {
  const size_t at = c.node.constants.size();
  c.node.constants.push_back(nullptr);
  const int64_t rows = outputs_along(c.node, 0, c.x.shape[2]);
  const int64_t columns = outputs_along(c.node, 1, c.x.shape[3]);
  if (c.op == "SparseConv" || c.op == "DepthwiseConv") {
    c.fed[at] = normal(g, {c.x.shape[0], c.bias.shape[0], rows, columns});
    return;
  }
  for (const char* name : {"sum_factor", "residual_factor"}) c.node.numbers[name] = 0.6F;
  c.node.numbers["offset"] = -20.5F;
  c.node.integers["sum_minimum"] = {pick(g, 0, 60)};
  c.fed[at] = random_images(g, c.x.shape[0], c.outputs, rows, columns);
}

const abi::CustomOp* find(const std::string& name) {
  for (const abi::CustomOp* op : fake::operators())
    if (name == op->get_name(op)) return op;
  std::printf("no operator %s\n", name.c_str());
  std::exit(1);
}

/// A kernel of the node, or null where it was refused.
void* create(const Case& c) {
  void* kernel = nullptr;
  const abi::CustomOp* op = find(c.op);
  auto* status =
      op->create_kernel_v2(op, fake::api(18), fake::as<abi::KernelInfo>(&c.node), &kernel);
  delete fake::as<fake::Status>(status);
  return kernel;
}

/// The bytes of quantized images that mean something.
std::vector<float> pixels(const Value& images, int64_t channels) {
  std::vector<float> found;
  if (images.shape.empty()) return found;
  const int64_t positions = images.shape[2] * images.shape[3], quads = (channels + 3) / 4;
  for (int64_t n = 0; n < images.shape[0]; ++n)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t tile = p / 112 * 112;
        const int64_t width = std::min<int64_t>(112, (positions + 15) / 16 * 16 - tile);
        const int64_t at = tile * quads + c / 4 * width + p % 112;
        found.push_back(images.bytes[n * images.shape[1] * positions + 4 * at + c % 4]);
      }
  return found;
}

/// What a kernel gives; with `refused`, only whether it does.
std::vector<float> run(Case& c, void* kernel, int threads, bool* refused = nullptr,
                       Value* overwritten = nullptr) {
  Call call;
  call.overwritten = overwritten;
  call.inputs = c.node.constants;
  call.inputs[0] = &c.x;
  for (auto& [index, value] : c.fed)
    if (index < call.inputs.size()) call.inputs[index] = &value;
  call.threads = threads;
  call.output.type = c.outputs || c.gives_bytes ? abi::kUint8 : abi::kFloat;
  auto* status = find(c.op)->compute_v2(kernel, fake::as<abi::KernelContext>(&call));
  if (refused) *refused = status != nullptr;
  if (status && !refused) std::printf("%s\n", fake::as<fake::Status>(status)->message.c_str());
  delete fake::as<fake::Status>(status);
  if (refused) return {};
  const Value& output = overwritten ? *overwritten : call.output;
  if (c.outputs) return pixels(output, c.outputs);
  if (c.gives_bytes) return {output.bytes.begin(), output.bytes.end()};
  return output.floats;
}

/// Whether a kernel gives something else in the memory of the input that it may overwrite; `ran`
/// says whether it has that input.
bool differs_in_place(const Case& c, void* kernel, const std::vector<float>& expected, bool* ran) {
  const abi::CustomOp* op = find(c.op);
  *ran = false;
  if (!op->get_may_inplace) return false;
  int *inputs = nullptr, *outputs = nullptr;
  const size_t number = op->get_may_inplace(&inputs, &outputs);
  const auto at = static_cast<size_t>(number ? inputs[0] : -1);
  op->release_may_inplace(inputs, outputs);
  Case own = c;
  if (number != 1 || (at && !own.fed.count(at))) return false;
  *ran = true;
  return run(own, kernel, 2, nullptr, at ? &own.fed.at(at) : &own.x) != expected;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0, largest = 1e-30;
  if (a.size() != b.size()) return 1;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::fmax(most, std::fabs(static_cast<double>(a[i]) - b[i]));
    largest = std::fmax(largest, std::fabs(b[i]));
  }
  return most / largest;
}

/// Changes some indices of the sparse weights.
void damage(Generator& g, Case& c) {
  for (int i = pick(g, 1, 3); i > 0; --i) {
    if (pick(g, 0, 1) && !c.columns.shorts.empty()) {
      c.columns.shorts[pick(g, 0, static_cast<int>(c.columns.shorts.size()) - 1)] =
          static_cast<uint16_t>(pick(g, 0, 65535));
    } else {
      c.starts.integers[pick(g, 0, static_cast<int>(c.starts.integers.size()) - 1)] =
          pick(g, -5, 2000);
    }
  }
}

/// Children of a busy process that did not end well within ten seconds.
int failed_forks(int forks) {
  Generator g(0);
  Case c;
  c.op = "SparseLinear";
  c.node.integers["features"] = {4};
  c.x = normal(g, {2, 4});
  sparse_weights(g, c, 64, 4, 0.5);  // hardly anything but working memory that is taken and given
  c.bias = normal(g, {64});
  c.node.constants = {nullptr, &c.values, &c.columns, &c.starts, &c.bias};
  void* kernel = create(c);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, own = c]() mutable {
      own.node.constants = c.node.constants;
      while (!stop) run(own, kernel, 1);
    });
  int failed = 0;
  for (int i = 0; i < forks; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      run(c, kernel, 1);
      _exit(0);
    }
    int status = 0;
    bool ended = false;
    for (int ms = 0; ms < 10000 && !ended; ++ms) {
      ended = waitpid(child, &status, WNOHANG) == child;
      if (!ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (!ended) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
    }
    failed += !ended || status != 0;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  find(c.op)->destroy(kernel);
  return failed;
}

template <class Key, class T>
T& any_of(Generator& g, std::map<Key, T>& map) {
  return std::next(map.begin(), pick(g, 0, static_cast<int>(map.size()) - 1))->second;
}

/// Changes an attribute to what no file should have.
void damage_attribute(Generator& g, Node& node) {
  const float infinite = std::numeric_limits<float>::infinity();
  const float numbers[] = {0, -1, 1e38F, 1e-45F, -infinite, infinite,
                           std::numeric_limits<float>::quiet_NaN()};
  const int64_t large = int64_t{1} << 40;
  const int64_t integers[] = {-large, -1, 0, 1, 2, 5, 200, 256, large, INT64_MAX, INT64_MIN};
  const char* const texts[] = {"", "nchw", "blocked", "relu", "clip", "nothing"};
  switch (pick(g, 0, 5)) {
    case 0:
      if (!node.numbers.empty()) any_of(g, node.numbers) = numbers[pick(g, 0, 6)];
      return;
    case 1:
      if (!node.numbers.empty()) node.numbers.erase(node.numbers.begin());
      return;
    case 2:
      if (!node.texts.empty()) any_of(g, node.texts) = texts[pick(g, 0, 5)];
      return;
    case 3: {
      const int last = static_cast<int>(node.integers.size()) - 1;
      if (last >= 0) node.integers.erase(std::next(node.integers.begin(), pick(g, 0, last)));
      return;
    }
    case 4:
      if (!node.integers.empty()) any_of(g, node.integers).push_back(pick(g, 0, 300));
      return;
    default: {
      if (node.integers.empty()) return;
      std::vector<int64_t>& values = any_of(g, node.integers);
      values[pick(g, 0, static_cast<int>(values.size()) - 1)] = integers[pick(g, 0, 10)];
    }
  }
}

/// Gives a tensor another shape, with just as much memory, or a constant another type (of what is
/// fed ONNX Runtime checks types).
void damage_tensor(Generator& g, Value& value, bool is_constant) {
  if (is_constant && pick(g, 0, 3) == 0) {
    const int types[] = {abi::kFloat, abi::kUint8, abi::kInt8, abi::kInt32, abi::kUint16};
    value.type = types[pick(g, 0, 4)];
  } else if (pick(g, 0, 3) == 0 || value.shape.empty()) {
    value.shape.insert(value.shape.begin(), pick(g, 0, 2));
  } else if (pick(g, 0, 4) == 0) {
    value.shape.pop_back();
  } else {
    const int sizes[] = {0, 1, 3, 4, 16, 63, 64};
    value.shape[pick(g, 0, static_cast<int>(value.shape.size()) - 1)] = sizes[pick(g, 0, 6)];
  }
  size_t count = 1;
  for (int64_t size : value.shape) count *= static_cast<size_t>(size);
  if (value.type == abi::kFloat) value.floats.resize(count, 1.0F);
  if (value.type == abi::kUint8 || value.type == abi::kInt8) value.bytes.resize(count, 1);
  if (value.type == abi::kInt32) value.integers.resize(count, 1);
  if (value.type == abi::kUint16) value.shorts.resize(count, 1);
  value.floats.shrink_to_fit(), value.bytes.shrink_to_fit();
  value.integers.shrink_to_fit(), value.shorts.shrink_to_fit();
}

/// Changes an attribute or a tensor; whether it was refused.
bool refuses_damaged(Generator& g, const Case& c) {
  Case broken = c;
  std::vector<Value*> constants;
  for (Value* constant : broken.node.constants)
    if (constant) constants.push_back(constant);
  const int what = pick(g, 0, 3);
  if (what == 0 && !constants.empty())
    damage_tensor(g, *constants[pick(g, 0, static_cast<int>(constants.size()) - 1)], true);
  else if (what == 1)
    damage_tensor(g, broken.x, false);
  else if (what == 2 && !broken.fed.empty())
    damage_tensor(g, any_of(g, broken.fed), false);
  else
    damage_attribute(g, broken.node);
  void* survivor = create(broken);
  if (!survivor) return true;
  bool refused = false;
  run(broken, survivor, 1, &refused);
  find(c.op)->destroy(survivor);
  return refused;
}

}  // namespace

int main(int count, char** arguments) {
  void* library = count > 1 ? dlopen(arguments[1], RTLD_NOW) : nullptr;
  if (!library) return std::printf("%s\n", count > 1 ? dlerror() : "which library?"), 1;
  auto select = reinterpret_cast<int (*)(const char*)>(dlsym(library, "st3fx_select_isa"));
  auto enroll = reinterpret_cast<fake::Status* (*)(void*, const abi::ApiBase*)>(
      dlsym(library, "RegisterCustomOps"));
  const abi::ApiBase base{fake::api, nullptr};
  if (enroll(nullptr, &base)) return std::printf("not registered\n"), 1;

  const int cases = count > 2 ? std::atoi(arguments[2]) : 200;
  const char* const ops[] = {"SparseConv",    "SparseConv",   "SparseLinear",
                             "DepthwiseConv", "ImageMaxPool", "ImageAveragePool",
                             "QuantConv",     "QuantConv",    "QuantLinear",
                             "QuantDepthwiseConv", "QuantMaxPool", "QuantAveragePool",
                             "QuantAdd",      "QuantLookup",  "QuantGlobalAveragePool",
                             "QuantScale",    "QuantChannels", "QuantizeImage",
                             "DequantizeImage", "QuantLayout"};
  constexpr int kProducts = 12, kOps = 20;
  int compared = 0, refused = 0, wrong = 0, damaged = 0;
  std::map<std::string, int> in_place;
  for (int seed = 0; seed < cases; ++seed) {
    Generator g(static_cast<unsigned>(seed));
    Case c;
    c.op = ops[seed % kOps];
    const bool quantized = c.op.rfind("Quant", 0) == 0;
    if (seed % kOps >= kProducts) fill_simple(g, c);
    else quantized ? fill_quantized(g, c) : fill_case(g, c);
    const bool sums = c.op.find("Conv") != std::string::npos;
    if (sums && pick(g, 0, 1)) add_residual(g, c);
    select("scalar");
    void* reference = create(c);
    const std::vector<float> expected = run(c, reference, 1);
    find(c.op)->destroy(reference);
    for (const char* isa : {"avx512vnni", "avx512", "avxvnni", "avx2", "neondot", "neon", "baseline"}) {
      if (!select(isa)) continue;
      void* kernel = create(c);
      std::vector<float> results[2];
      std::thread other([&] { results[0] = run(c, kernel, 3); });
      results[1] = run(c, kernel, 2);
      other.join();
      bool ran = false;
      if (differs_in_place(c, kernel, results[1], &ran)) {
        ++wrong;
        std::printf("seed %d, %s on %s differs in place\n", seed, c.op.c_str(), isa);
      }
      in_place[c.op] += ran;
      find(c.op)->destroy(kernel);
      for (const std::vector<float>& result : results) {
        ++compared;
        // Sums of integers are exact: every byte is the reference's.
        if (difference(result, expected) <= (c.outputs || c.gives_bytes ? 0 : 1e-5)) continue;
        ++wrong;
        std::printf("seed %d, %s on %s: %g\n", seed, c.op.c_str(), isa,
                    difference(result, expected));
      }
      for (int i = 0; i < 8; ++i) damaged += refuses_damaged(g, c);
      if (c.columns.shorts.empty()) continue;
      Case broken = c;
      damage(g, broken);
      if (void* survivor = create(broken)) {
        run(broken, survivor, 1);
        find(c.op)->destroy(survivor);
      } else {
        ++refused;
      }
    }
  }
  std::printf("%d results compared, %d wrong; %d damaged weights, %d other damages refused\n",
              compared, wrong, refused, damaged);
  for (const char* op : {"SparseConv", "DepthwiseConv", "QuantConv", "QuantDepthwiseConv",
                         "QuantAdd", "QuantLookup"})
    if (cases >= 200 && !in_place[op]) return std::printf("%s never ran in place\n", op), 1;
  const int forks = count > 3 ? std::atoi(arguments[3]) : 0;
  const int failed = forks ? failed_forks(forks) : 0;
  if (forks) std::printf("%d forks, %d children failed\n", forks, failed);
  return wrong != 0 || refused == 0 || damaged == 0 || failed != 0;
}

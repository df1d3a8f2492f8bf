#include "layout.h"

namespace st3fx {

Layout parse_layout(const std::string& name) {
  if (name == "nchw") return Layout::nchw;
  if (name == "blocked") return Layout::blocked;
  throw Error("layout '" + name + "' is neither 'nchw' nor 'blocked'");
}

Images images_of(const Tensor& tensor, Layout layout, int64_t channels) {
  const Shape& shape = tensor.shape;
  if (tensor.type != ort::kFloat) throw Error("input is not float32");
  if (shape.size() != 4)
    throw Error("input of shape " + to_string(shape) + " is no batch of images [N, C, H, W]");
  Images images{layout, shape[0], channels, {shape[2], shape[3]}};
  if (images.shape() != shape)
    throw Error("input of shape " + to_string(shape) + ", but " + std::to_string(channels) +
                " channels of this size are " + to_string(images.shape()) +
                (layout == Layout::blocked ? " in the blocked layout" : ""));
  return images;
}

const Tensor& same_shape(const Tensor& tensor, const Images& images) {
  if (tensor.shape != images.shape())
    throw Error("operand of shape " + to_string(tensor.shape) + " for an output of shape " +
                to_string(images.shape()));
  return tensor;
}

std::vector<float> read_bias(const NodeInfo& node, size_t input, int64_t outputs) {
  const std::optional<Tensor> bias = node.optional_constant(input, "bias", ort::kFloat);
  if (!bias) return std::vector<float>(outputs, 0.0F);
  if (bias->shape != Shape{outputs})
    throw Error("bias of shape " + to_string(bias->shape) + " for " + std::to_string(outputs) +
                " outputs");
  return {bias->floats(), bias->floats() + outputs};
}

}  // namespace st3fx

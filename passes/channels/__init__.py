"""Dead-channel elimination: a smaller dense graph that computes the same.

Where it works. Channel counts are the business of a model's class, so a module of the user's class
cannot lose any. The pass works on the functional ATen graph that ``torch.export`` gives for a model
in eval mode, and returns an ``fx.GraphModule`` of plain operators whose parameters keep their
names and have smaller shapes. It runs, is saved and is exported to ONNX like any module, so that
one analysis serves ``fold`` and ``export``. The view of ``st3fx.dataflow`` has sites and joins, and
knows no single channels; this one is its refinement.

What is known (``coupling``, ``fact``; one rule per operator in ``rules``). Every index of every
dimension of every parameter is a *channel*. Operators say which channels are one: additions and
products element by element tie the channels of their operands, a convolution ties its input's to
those of its weight, a concatenation puts them one behind the other, a flattening repeats them. An
operator without a rule pins the channels that it reads, and so do the outputs of the model.

Forward (``Slices``). A filter without a nonzero gives a constant channel; batch norm, activations,
pooling and sums map constants to constants, products with zero to zero. Inputs are taken to be
finite, as everywhere where a zero weight stands for no multiplication.

Backward (``liveness``). A channel lives if it is pinned, or if a live channel is computed from it
with a weight that is not zero and it is not a constant that the reader can absorb. The rest is dead
and goes (``shrink``). A channel that several tensors share, as in residual sums, goes from all of
them or from none.

Borders. A convolution without padding absorbs constants into its bias. With padding the constant is
missing outside of the image. A sum of constants times filters is itself one filter on one constant
channel, so one of them, the *carrier*, stays and takes the filters of the others, scaled: exact at
every border, for every size of image, for transposed convolutions too, and without another
operator. A padded depthwise convolution has one input per filter and keeps a constant that is not
zero.

Operands of additions and products that are constant altogether become vectors (``branches``).
"""

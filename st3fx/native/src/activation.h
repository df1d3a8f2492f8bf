// What comes last in an operator: a function of each output.
#pragma once

namespace st3fx {

struct Activation {
  enum Kind { none, clip, silu, hard_swish };
  Kind kind = none;
  float minimum = 0, maximum = 0;  // of clip
};

}  // namespace st3fx

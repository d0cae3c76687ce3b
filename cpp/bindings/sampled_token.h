// SampledToken in Python: (id, logprob, [(id, logprob), ...]). Every binding file that returns one
// includes this.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "sampling/sampler.h"

namespace pybind11::detail {

template <>
struct type_caster<lola::SampledToken> {
  static constexpr auto name = const_name("tuple[int, float, list[tuple[int, float]]]");

  static handle cast(const lola::SampledToken& token, return_value_policy, handle) {
    return pybind11::make_tuple(token.id, token.logprob, token.top).release();
  }
};

}  // namespace pybind11::detail

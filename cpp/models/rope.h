// Rotation angles of RoPE, in double precision from 64-bit positions: position 10,000,000 is as
// exact as position 10.
#pragma once

#include <cstdint>
#include <vector>

#include "models/hyperparameters.h"

namespace lola {

class Rope {
 public:
  explicit Rope(const RopeParameters& parameters);

  int64_t pairs() const { return static_cast<int64_t>(frequencies_.size()); }

  // cosine, sine [pairs]
  void angles(int64_t position, float* cosine, float* sine) const;

 private:
  std::vector<double> frequencies_;  // radians per position
  double magnitude_;                 // yarn's attention factor
};

}  // namespace lola

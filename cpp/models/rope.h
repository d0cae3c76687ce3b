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
  // An angle's cosine and sine are put together from those of its position's digits.
  struct Digit {
    std::vector<double> cosine, sine;  // [kDigitBase, pairs]
  };

  void exact_angles(int64_t position, float* cosine, float* sine) const;

  std::vector<double> frequencies_;  // radians per position
  std::vector<Digit> digits_;        // the lowest first
  double magnitude_;                 // yarn's attention factor
};

}  // namespace lola

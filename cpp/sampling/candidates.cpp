#include "sampling/candidates.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <utility>

#include "base/error.h"
#include "kernels/kernels.h"
#include "kernels/logit_scans.h"

namespace lola {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const LogitScans& scans() {
  static const LogitScans& chosen = logit_scans(select_kernels().isa);
  return chosen;
}

[[noreturn]] void throw_not_a_logit(std::span<const float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < kInfinity)) {
      throw UsageError(
          message("logits[", i, "]: found ", logits[i], ", wanted a finite number or -infinity"));
    }
  }
  throw UsageError(
      "logits: found no token that may be chosen, wanted at least one above -infinity");
}

std::span<const float> block_of(std::span<const float> logits, size_t block) {
  const size_t begin = block * kLogitBlock;
  return logits.subspan(begin, std::min<size_t>(kLogitBlock, logits.size() - begin));
}

// The k-th greatest peak of a block: k logits are at least as great.
float least_of_best(const Peaks& peaks, size_t k) {
  if (k > peaks.of_block.size()) return -kInfinity;
  std::vector<float> sorted = peaks.of_block;
  const auto kth = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<>());
  return *kth;
}

// Smaller for a better candidate, equal for equal logits, 0 of either sign being equal.
uint32_t sort_key(const Candidate& candidate) {
  const uint32_t bits = std::bit_cast<uint32_t>(candidate.logit + 0.0f);
  return (bits >> 31) != 0 ? bits : ~bits & 0x7FFFFFFFu;
}

}  // namespace

Peaks find_peaks(std::span<const float> logits) {
  Peaks peaks{-kInfinity, std::vector<float>((logits.size() + kLogitBlock - 1) / kLogitBlock)};
  const int64_t count = static_cast<int64_t>(logits.size());
  const bool good = scans().block_maxima(logits.data(), count, peaks.of_block.data());
  for (const float peak : peaks.of_block) peaks.max = std::max(peaks.max, peak);
  if (!good || peaks.max == -kInfinity) throw_not_a_logit(logits);
  return peaks;
}

int32_t greatest(std::span<const float> logits, const Peaks& peaks) {
  const auto peak = std::find(peaks.of_block.begin(), peaks.of_block.end(), peaks.max);
  const auto begin = logits.begin() + (peak - peaks.of_block.begin()) * kLogitBlock;
  return static_cast<int32_t>(std::find(begin, logits.end(), peaks.max) - logits.begin());
}

double exp_sum(std::span<const float> logits, float max) {
  return scans().exp_sum(logits.data(), static_cast<int64_t>(logits.size()), max);
}

void to_weights(std::span<float> logits, float max, double temperature, double min_p) {
  scans().weights(logits.data(), static_cast<int64_t>(logits.size()), max, temperature,
                  static_cast<float>(min_p));
}

std::vector<Candidate> at_least(std::span<const float> logits, const Peaks& peaks, float least) {
  std::vector<Candidate> found;
  const auto blocks = std::count_if(peaks.of_block.begin(), peaks.of_block.end(),
                                    [&](float peak) { return peak >= least; });
  found.reserve(static_cast<size_t>(blocks * kLogitBlock));
  for (size_t block = 0; block < peaks.of_block.size(); ++block) {
    if (peaks.of_block[block] < least) continue;
    int32_t id = static_cast<int32_t>(block * kLogitBlock);
    for (const float logit : block_of(logits, block)) {
      if (logit >= least) found.push_back({logit, id});
      ++id;
    }
  }
  return found;
}

std::vector<Candidate> best(std::span<const float> logits, const Peaks& peaks, int64_t k) {
  const size_t wanted = std::min(static_cast<size_t>(k), logits.size());
  if (wanted == 0) return {};
  std::vector<Candidate> kept = at_least(logits, peaks, least_of_best(peaks, wanted));
  const auto end = kept.begin() + static_cast<std::ptrdiff_t>(wanted);
  std::nth_element(kept.begin(), end - 1, kept.end(), better);
  kept.erase(end, kept.end());
  std::sort(kept.begin(), kept.end(), better);
  return kept;
}

void sort_best_first(std::vector<Candidate>& candidates) {
  constexpr int kBits = 11, kDigits = 3;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  std::array<std::array<uint32_t, kMask + 1>, kDigits> places{};
  for (const Candidate& each : candidates) {
    const uint32_t key = sort_key(each);
    for (int digit = 0; digit < kDigits; ++digit) ++places[digit][(key >> digit * kBits) & kMask];
  }
  std::vector<Candidate> other(candidates.size());
  // By the least significant digits first; each pass keeps the order of equals.
  for (int digit = 0; digit < kDigits; ++digit) {
    uint32_t total = 0;
    for (uint32_t& place : places[digit]) total += std::exchange(place, total);
    for (const Candidate& each : candidates) {
      other[places[digit][(sort_key(each) >> digit * kBits) & kMask]++] = each;
    }
    candidates.swap(other);
  }
}

}  // namespace lola

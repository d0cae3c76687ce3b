#include <algorithm>
#include <vector>

#include "backend/cuda/products.cuh"

namespace lola {
namespace {

constexpr int64_t kSlabColumns = kSlabPieces * kPieceWeights;
constexpr int kCublasTokens = 512;     // below, decoding a matrix costs more than it brings
constexpr int64_t kCublasColumns = 8;  // rows of 16 bytes
constexpr int64_t kAheadShare = 64;    // of the GPU's memory, for weights decoded ahead

int64_t padded(int64_t columns) { return ceil_div(columns, kSlabColumns) * kSlabColumns; }

DeviceJob device_job(const MatmulJob& job) {
  const WeightMatrix& weight = *job.weight;
  return {device_matrix(weight.format->type, weight.data, weight.rows, weight.cols), job.bias,
          job.out, static_cast<int>(job.out_stride), job.accumulate};
}

// As many jobs from `begin` on as one kernel takes.
DeviceJobs some_jobs(std::span<const DeviceJob> jobs, size_t begin) {
  DeviceJobs some{};
  for (size_t i = begin; i < jobs.size() && some.count < kMaxJobs; ++i) {
    some.job[some.count++] = jobs[i];
  }
  return some;
}

}  // namespace

Products::Products(const CudaDevice& device, std::function<void()> grown)
    : device_(device), grown_(std::move(grown)) {
  cuda_check(cudaStreamCreateWithFlags(&beside_.handle, cudaStreamNonBlocking), "stream");
  cuda_check(cudaEventCreateWithFlags(&ahead_begins_, cudaEventDisableTiming), "event");
  cuda_check(cudaEventCreateWithFlags(&ahead_done_, cudaEventDisableTiming), "event");
  size_t free = 0, total = 0;
  cuda_check(cudaMemGetInfo(&free, &total), "free memory");
  most_ahead_ = static_cast<int64_t>(total) / kAheadShare;
}

Products::~Products() {
  cudaStreamSynchronize(beside_.handle);
  cudaEventDestroy(ahead_begins_);
  cudaEventDestroy(ahead_done_);
  cudaStreamDestroy(beside_.handle);
}

bool Products::goes_wide(int64_t tokens) const {
  return kHasWide && device_.has_wgmma() && tokens > kGemvTokens && tokens < kCublasTokens;
}

template <typename T>
T* Products::get(DeviceScratch& scratch, int64_t count) {
  bool grown = false;
  T* memory = scratch.get<T>(count, grown);
  if (grown) grown_();
  return memory;
}

ProductCopy Products::copy_of(const float* of, int64_t rows, int64_t width, bool rounds) {
  latest_ = {of, {}, true, true, rounds && rows == 1 && width % kPieceWeights == 0, {}};
  if (goes_wide(rows)) latest_.copy.tile_bits = wide_tile_bits(rows);
  const int64_t tile = int64_t{1} << latest_.copy.tile_bits;
  latest_.copy.halves = get<__half>(halves_, ceil_div(rows, tile) * tile * padded(width));
  latest_.copy.stride = static_cast<int>(padded(width));
  if (latest_.rounded) {
    turn_ = 1 - turn_;
    latest_.copy.rounded = {get<int8_t>(rounded_[turn_], padded(width)),
                            get<float2>(rounded_groups_[turn_], padded(width) / 16)};
  }
  return latest_.copy;
}

void Products::forget() {
  latest_ = {};
  waiting_.count = 0;
}

void Products::flush(const Stream& stream) {
  if (waiting_.count > 0) run_waiting(stream, {});
}

void Products::complete(const Stream& stream) {
  flush(stream);
  if (latest_.of != nullptr && !latest_.floats) materialize(stream);
}

void Products::run_waiting(const Stream& stream, const RoundedEnding& ending) {
  gemv_rounded(stream, waiting_, waiting_x_, waiting_factor_, ending);
  waiting_.count = 0;
}

void Products::norm(const Stream& stream, const float* x, int64_t rows, int64_t dim,
                    const float* weight, float eps, float* out) {
  const bool folds = waiting_.count == 1 && waiting_.job[0].out == x && rows == 1 && x != out &&
                     waiting_.job[0].matrix.rows == dim;
  if (!folds) {
    flush(stream);
    // Norms of single heads are in place and are never multiplied as they are.
    const ProductCopy copy = x == out ? ProductCopy{} : copy_of(out, rows, dim, true);
    rms_norm(stream, x, rows, dim, weight, eps, out, copy);
    return;
  }
  const auto tiles = static_cast<int>(dim / kSlabRows);
  auto* squares = get<float>(squares_, tiles);
  copy_of(out, rows, dim, true);
  run_waiting(stream, {Ending::kNormed, latest_.copy.rounded, weight, squares});
  latest_.floats = latest_.halves = false;
  latest_.factor = {squares, tiles, static_cast<int>(dim), eps};
  open_norm_ = {x, weight, out, dim, eps};
}

void Products::materialize(const Stream& stream) {
  latest_.floats = true;
  rms_norm(stream, open_norm_.x, 1, open_norm_.dim, open_norm_.weight, open_norm_.eps,
           open_norm_.out, copy_of(open_norm_.out, 1, open_norm_.dim, true));
}

void Products::gate(const Stream& stream, float* gate, const float* up, int64_t rows,
                    int64_t width) {
  const bool folds =
      waiting_.count == 2 && waiting_.job[0].out == gate && waiting_.job[1].out == up && rows == 1;
  if (!folds) {
    flush(stream);
    lola::silu_gate(stream, gate, up, rows, width, copy_of(gate, rows, width, true));
    return;
  }
  copy_of(gate, rows, width, true);
  run_waiting(stream, {Ending::kGated, latest_.copy.rounded, nullptr, nullptr});
  latest_.halves = false;
}

void Products::multiply(const Stream& stream, const float* x, int64_t tokens,
                        std::span<const MatmulJob> jobs) {
  flush(stream);
  std::vector<DeviceJob> stored, plain;
  const int64_t cols = jobs.front().weight->cols;
  bool halves = tokens > 1, floats = false;
  for (const MatmulJob& job : jobs) {
    const DeviceJob own = device_job(job);
    const bool is_plain = own.matrix.encoding == Encoding::kF32;
    (is_plain ? plain : stored).push_back(own);
    floats = floats || is_plain;
    halves = halves || own.matrix.encoding == Encoding::kF16;
  }
  if (x == latest_.of && !latest_.floats && (floats || halves)) materialize(stream);
  for (size_t i = 0, at = 0; i < jobs.size() && floats; ++i) {
    if (jobs[i].weight->format->type != QuantType::kF32) continue;
    gemm_f32(stream, reinterpret_cast<const float*>(jobs[i].weight->data), x, tokens, cols,
             plain[at++]);
  }
  if (!stored.empty()) {
    const bool there = x == latest_.of && (halves ? latest_.halves : latest_.rounded);
    if (!there) copy_rows(stream, x, tokens, cols, copy_of(x, tokens, cols, true));
    multiply_stored(stream, stored, x, tokens, cols);
  }
  for (const MatmulJob& job : jobs) {
    if (job.out == latest_.of) latest_ = {};
  }
}

void Products::multiply_stored(const Stream& stream, std::span<const DeviceJob> jobs,
                               const float* x, int64_t tokens, int64_t cols) {
  const HalfRows halves{latest_.copy.halves, static_cast<int>(tokens), latest_.copy.stride};
  if (goes_wide(tokens)) {
    const int multiprocessors = device_.multiprocessors();
    const WidestSizes sizes = widest_sizes(multiprocessors);
    const bool widest = latest_.copy.tile_bits == kWidestBits;
    const WidestScratch scratch{widest ? get<float4>(wide_partials_, sizes.partials) : nullptr,
                                widest ? get<unsigned>(wide_counters_, sizes.counters) : nullptr};
    for (size_t begin = 0; begin < jobs.size(); begin += kMaxJobs) {
      const DeviceJobs together = some_jobs(jobs, begin);
      if (widest) {
        gemm_widest(stream, together, halves, multiprocessors, scratch);
      } else {
        gemm_wide(stream, together, halves);
      }
    }
    return;
  }
  if (tokens > kGemvTokens) {
    for (const DeviceJob& job : jobs) multiply_many(stream, job, cols, halves);
    return;
  }
  std::vector<DeviceJob> in_integers;
  DeviceJobs in_halves{};
  for (const DeviceJob& job : jobs) {
    if (tokens == 1 && latest_.rounded && job.matrix.encoding != Encoding::kF16) {
      in_integers.push_back(job);
    } else {
      in_halves.job[in_halves.count++] = job;
    }
    if (in_halves.count == kMaxJobs || (&job == &jobs.back() && in_halves.count > 0)) {
      gemv(stream, in_halves, halves);
      in_halves.count = 0;
    }
  }
  if (!in_integers.empty() && x == latest_.of) multiply_one(stream, in_integers);
}

// Products that a norm or a gate may follow wait for it.
bool Products::may_wait(std::span<const DeviceJob> jobs) const {
  const auto fits = [](const DeviceJob& job) { return job.matrix.rows % kPieceWeights == 0; };
  if (jobs.size() == 1) return jobs[0].accumulate && fits(jobs[0]);
  if (jobs.size() != 2) return false;
  const DeviceJob &a = jobs[0], &b = jobs[1];
  return a.matrix.encoding == b.matrix.encoding && a.matrix.rows == b.matrix.rows &&
         a.bias == nullptr && b.bias == nullptr && !a.accumulate && !b.accumulate && fits(a);
}

void Products::multiply_one(const Stream& stream, std::span<const DeviceJob> jobs) {
  const RoundedRow& x = latest_.copy.rounded;
  for (size_t begin = 0; begin < jobs.size(); begin += kMaxJobs) {
    const DeviceJobs together = some_jobs(jobs, begin);
    if (together.count == std::ssize(jobs) && may_wait(jobs)) {
      waiting_ = together;
      waiting_x_ = x;
      waiting_factor_ = latest_.factor;
      return;
    }
    gemv_rounded(stream, together, x, latest_.factor, {});
  }
}

bool Products::goes_to_cublas(int64_t tokens, int64_t cols) const {
  return cublas_ != nullptr && tokens >= kCublasTokens && cols % kCublasColumns == 0;
}

void Products::decode_ahead(const Stream& stream, int64_t tokens,
                            std::span<const WeightMatrix* const> weights) {
  int64_t left = most_ahead_;
  size_t count = 0;
  for (; count < weights.size() && count < std::size(ahead_); ++count) {
    const WeightMatrix& weight = *weights[count];
    left -= weight.rows * weight.cols * 2;
    const bool is_plain = weight.format->type == QuantType::kF32;
    if (left < 0 || is_plain || !goes_to_cublas(tokens, weight.cols)) break;
    // Taken before the streams part: memory that grows is cleared on the first of them.
    ahead_[count].weight = get<__half>(ahead_[count].memory, weight.rows * weight.cols);
  }
  if (count == 0) return;
  cuda_check(cudaEventRecord(ahead_begins_, stream.handle), "event");
  cuda_check(cudaStreamWaitEvent(beside_.handle, ahead_begins_, 0), "event");
  for (size_t i = 0; i < count; ++i) {
    const WeightMatrix& weight = *weights[i];
    const DeviceMatrix matrix =
        device_matrix(weight.format->type, weight.data, weight.rows, weight.cols);
    dequantize(beside_, matrix, weight.cols, ahead_[i].weight);
    ahead_[i].of = matrix.codes;
  }
  cuda_check(cudaEventRecord(ahead_done_, beside_.handle), "event");
}

const __half* Products::decoded(const Stream& stream, const DeviceMatrix& matrix, int64_t cols) {
  for (Decoded& ahead : ahead_) {
    if (ahead.of != matrix.codes) continue;
    cuda_check(cudaStreamWaitEvent(stream.handle, ahead_done_, 0), "event");
    ahead.of = nullptr;
    return ahead.weight;
  }
  auto* weight = get<__half>(decoded_, matrix.rows * cols);
  dequantize(stream, matrix, cols, weight);
  return weight;
}

void Products::multiply_many(const Stream& stream, const DeviceJob& job, int64_t cols,
                             const HalfRows& x) {
  if (goes_to_cublas(x.tokens, cols)) {
    cublas_->multiply(stream, job, decoded(stream, job.matrix, cols), cols, x);
    return;
  }
  const int64_t partials = gemm_partials(job, x.tokens, device_.multiprocessors());
  gemm(stream, job, x, device_.multiprocessors(), get<float>(gemm_partials_, partials));
}

}  // namespace lola

#include <algorithm>
#include <vector>

#include "backend/cuda/products.cuh"

namespace lola {
namespace {

constexpr int64_t kSlabColumns = kSlabPieces * kPieceWeights;
constexpr int kCublasTokens = 512;   // below, decoding a matrix costs more than it brings
constexpr int64_t kAheadShare = 64;  // of the GPU's memory, for weights decoded ahead

int64_t padded(int64_t columns) { return ceil_div(columns, kSlabColumns) * kSlabColumns; }

DeviceMatrix stored_matrix(const WeightMatrix& weight) {
  return device_matrix(weight.format->type, weight.data, weight.rows, weight.cols);
}

// What a matrix has as float16, rows padded.
int64_t halves_of(const DeviceMatrix& matrix) { return matrix.rows * matrix.steps * kSlabColumns; }

DeviceJob device_job(const MatmulJob& job) {
  return {stored_matrix(*job.weight), job.bias, job.out, static_cast<int>(job.out_stride),
          job.accumulate};
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
  return kHasWide && device_.has_wgmma() && !reads_rows_ && tokens > kGemvTokens &&
         tokens < kCublasTokens;
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
  turn_ = rows == 1 ? 1 - turn_ : 0;
  latest_.copy.halves = get<__half>(halves_[turn_], ceil_div(rows, tile) * tile * padded(width));
  latest_.copy.stride = static_cast<int>(padded(width));
  if (latest_.rounded) {
    latest_.copy.rounded = {get<int8_t>(rounded_[turn_], padded(width)),
                            get<float2>(rounded_groups_[turn_], padded(width) / 16)};
  }
  return latest_.copy;
}

void Products::forget() {
  latest_ = {};
  turn_ = 0;  // every pass has the same turns, and memory has grown to what they need
  waiting_.count = 0;
}

void Products::flush(const Stream& stream) {
  if (waiting_.count > 0) run_one(stream, waiting_, waiting_x_, {});
  waiting_.count = 0;
}

void Products::complete(const Stream& stream) {
  flush(stream);
  if (latest_.of != nullptr && !latest_.floats) materialize(stream);
}

void Products::run_one(const Stream& stream, const DeviceJobs& jobs, const OneRow& x,
                       const OneEnding& ending) {
  const bool is_half = jobs.job[0].matrix.encoding == Encoding::kF16;
  is_half ? gemv_halves(stream, jobs, x, ending) : gemv_rounded(stream, jobs, x, ending);
}

void Products::run_waiting(const Stream& stream, OneEnding ending) {
  // The weights that follow are most likely of the same kind.
  const bool is_half = waiting_.job[0].matrix.encoding == Encoding::kF16;
  if (is_half) ending.halves = latest_.copy.halves;
  ending.rounded = latest_.copy.rounded;
  latest_.halves = is_half;
  latest_.rounded = !is_half;
  run_one(stream, waiting_, waiting_x_, ending);
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
  run_waiting(stream, {Ending::kNormed, nullptr, {}, weight, squares});
  latest_.floats = false;
  latest_.factor = {squares, tiles, static_cast<int>(dim), eps};
  open_norm_ = {x, weight, out, dim, eps};
}

void Products::materialize(const Stream& stream) {
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
  run_waiting(stream, {Ending::kGated, nullptr, {}, nullptr, nullptr});
}

void Products::multiply(const Stream& stream, const float* x, int64_t tokens,
                        std::span<const MatmulJob> jobs) {
  flush(stream);
  std::vector<DeviceJob> stored, plain;
  const int64_t cols = jobs.front().weight->cols;
  bool alone = tokens == 1;  // a row with kernels of its own
  bool halves = false, integers = false;
  for (const MatmulJob& job : jobs) {
    const DeviceJob own = device_job(job);
    if (own.matrix.encoding == Encoding::kF32) {
      plain.push_back(own);
      continue;
    }
    stored.push_back(own);
    const bool is_half = own.matrix.encoding == Encoding::kF16;
    (is_half ? halves : integers) = true;
    alone = alone && (!is_half || cols % kSlabColumns == 0);
  }
  if (!plain.empty() && x == latest_.of && !latest_.floats) materialize(stream);
  for (size_t i = 0, at = 0; at < plain.size(); ++i) {
    if (jobs[i].weight->format->type != QuantType::kF32) continue;
    gemm_f32(stream, reinterpret_cast<const float*>(jobs[i].weight->data), x, tokens, cols,
             plain[at++]);
  }
  if (!stored.empty()) {
    reads_rows_ = cublas_ != nullptr && !integers;
    const bool one = (latest_.halves || !halves) && (latest_.rounded || !integers);
    const bool many =
        latest_.halves && latest_.floats && (latest_.copy.tile_bits > 0) == goes_wide(tokens);
    if (x != latest_.of || !(alone ? one : many)) copy(stream, x, tokens, cols);
    alone ? multiply_one(stream, stored) : multiply_stored(stream, stored, tokens);
  }
  for (const MatmulJob& job : jobs) {
    if (job.out == latest_.of) latest_ = {};
  }
}

// x in all forms.
void Products::copy(const Stream& stream, const float* x, int64_t tokens, int64_t cols) {
  if (x == latest_.of && !latest_.floats) return materialize(stream);
  copy_rows(stream, x, tokens, cols, copy_of(x, tokens, cols, true));
}

void Products::multiply_stored(const Stream& stream, std::span<const DeviceJob> jobs,
                               int64_t tokens) {
  const HalfRows halves{latest_.copy.halves, static_cast<int>(tokens), latest_.copy.stride};
  if (tokens > kGemvTokens && !goes_wide(tokens)) {
    for (const DeviceJob& job : jobs) multiply_many(stream, job, halves);
    return;
  }
  for (size_t begin = 0; begin < jobs.size(); begin += kMaxJobs) {
    const DeviceJobs together = some_jobs(jobs, begin);
    tokens > kGemvTokens ? gemm_wide(stream, together, halves) : gemv(stream, together, halves);
  }
}

// Products that a norm or a gate may follow wait for it.
bool Products::may_wait(std::span<const DeviceJob> jobs) const {
  const auto fits = [](const DeviceJob& job) {
    const bool is_half = job.matrix.encoding == Encoding::kF16;
    return job.matrix.rows % (is_half ? kSlabColumns : kPieceWeights) == 0;
  };
  if (jobs.size() == 1) return jobs[0].accumulate && fits(jobs[0]);
  if (jobs.size() != 2) return false;
  const DeviceJob &a = jobs[0], &b = jobs[1];
  return a.matrix.encoding == b.matrix.encoding && a.matrix.rows == b.matrix.rows &&
         a.bias == nullptr && b.bias == nullptr && !a.accumulate && !b.accumulate && fits(a);
}

void Products::multiply_one(const Stream& stream, std::span<const DeviceJob> jobs) {
  const OneRow x{latest_.copy.halves, latest_.copy.rounded, latest_.factor};
  if (may_wait(jobs)) {
    waiting_ = some_jobs(jobs, 0);
    waiting_x_ = x;
    return;
  }
  std::vector<DeviceJob> kinds[2];
  for (const DeviceJob& job : jobs) kinds[job.matrix.encoding == Encoding::kF16].push_back(job);
  for (const std::vector<DeviceJob>& kind : kinds) {
    for (size_t begin = 0; begin < kind.size(); begin += kMaxJobs) {
      run_one(stream, some_jobs(kind, begin), x, {});
    }
  }
}

bool Products::goes_to_cublas(Encoding encoding, int64_t tokens) const {
  return cublas_ != nullptr && (encoding == Encoding::kF16 || tokens >= kCublasTokens);
}

void Products::decode_ahead(const Stream& stream, int64_t tokens,
                            std::span<const WeightMatrix* const> weights) {
  int64_t left = most_ahead_;
  size_t count = 0;
  for (const WeightMatrix* weight : weights) {
    const DeviceMatrix matrix = stored_matrix(*weight);
    const bool is_coded = matrix.encoding != Encoding::kF16 && matrix.encoding != Encoding::kF32;
    if (!is_coded || !goes_to_cublas(matrix.encoding, tokens)) continue;
    left -= halves_of(matrix) * 2;
    if (left < 0 || count == std::size(ahead_)) break;
    // Taken before the streams part: memory that grows is cleared on the first of them.
    Decoded& ahead = ahead_[count++];
    ahead.weight = get<__half>(ahead.memory, halves_of(matrix));
    ahead.of = matrix;
  }
  if (count == 0) return;
  cuda_check(cudaEventRecord(ahead_begins_, stream.handle), "event");
  cuda_check(cudaStreamWaitEvent(beside_.handle, ahead_begins_, 0), "event");
  for (size_t i = 0; i < count; ++i) dequantize(beside_, ahead_[i].of, ahead_[i].weight);
  cuda_check(cudaEventRecord(ahead_done_, beside_.handle), "event");
}

const __half* Products::decoded(const Stream& stream, const DeviceMatrix& matrix) {
  if (matrix.encoding == Encoding::kF16) return reinterpret_cast<const __half*>(matrix.codes);
  for (Decoded& ahead : ahead_) {
    if (ahead.of.codes != matrix.codes) continue;
    cuda_check(cudaStreamWaitEvent(stream.handle, ahead_done_, 0), "event");
    ahead.of.codes = nullptr;
    return ahead.weight;
  }
  auto* weight = get<__half>(decoded_, halves_of(matrix));
  dequantize(stream, matrix, weight);
  return weight;
}

void Products::multiply_many(const Stream& stream, const DeviceJob& job, const HalfRows& x) {
  if (goes_to_cublas(job.matrix.encoding, x.tokens)) {
    cublas_->multiply(stream, job, decoded(stream, job.matrix), x);
    return;
  }
  const int64_t partials = gemm_partials(job, x.tokens, device_.multiprocessors());
  gemm(stream, job, x, device_.multiprocessors(), get<float>(gemm_partials_, partials));
}

}  // namespace lola

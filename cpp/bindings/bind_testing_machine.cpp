// What the machine can do at best, for tools/bench; the thread pool and the count of processors,
// for the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "backend/cuda_library.h"
#include "base/cpu_count.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "kernels/peak.h"

namespace py = pybind11;

namespace lola {
namespace {

constexpr int kRepeats = 8;  // the fastest counts: a busy machine only ever adds time

template <typename Work>
double best_seconds(const Work& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e300;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto begin = Clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

// Operations a second of all threads together.
double rate(ThreadPool& pool, int64_t (*loop)(int64_t)) {
  constexpr int64_t kRounds = 2'000'000;
  std::atomic<int64_t> operations{0};
  const double seconds = best_seconds([&] {
    operations = 0;
    pool.parallel_for(pool.threads(), [&](int64_t, int) { operations += loop(kRounds); });
  });
  return static_cast<double>(operations) / seconds;
}

// Bytes a second of reading memory far larger than any cache.
double read_rate(ThreadPool& pool) {
  constexpr int64_t kWordsOfThread = int64_t{32} << 20;
  const std::vector<uint64_t> words(static_cast<size_t>(pool.threads() * kWordsOfThread), 1);
  std::atomic<uint64_t> seen{0};
  const double seconds = best_seconds([&] {
    pool.parallel_for(pool.threads(), [&](int64_t part, int) {
      seen |= read_all(words.data() + part * kWordsOfThread, kWordsOfThread);
    });
  });
  if (seen != 1) throw DeviceError("memory: found other words than were written");
  return static_cast<double>(words.size() * sizeof(uint64_t)) / seconds;
}

py::dict machine_limits(const std::string& isa, int threads) {
  const PeakLoops& loops = peak_loops(kernels_by_name(isa.c_str()).isa);
  double bytes = 0, int8 = 0, float32 = 0;
  {
    py::gil_scoped_release release;
    ThreadPool pool(threads);
    bytes = read_rate(pool);
    int8 = rate(pool, loops.int8_dot);
    float32 = rate(pool, loops.float_fma);
  }
  py::dict limits;
  limits["read_bytes"] = bytes;
  limits["int8_operations"] = int8;
  limits["float_operations"] = float32;
  return limits;
}

// [(name, (major, minor) compute capability, free bytes, total bytes), ...]
py::list gpus() {
  py::list result;
  for (const GpuInfo& gpu : list_gpus()) {
    result.append(py::make_tuple(gpu.name, py::make_tuple(gpu.major, gpu.minor), gpu.free_bytes,
                                 gpu.total_bytes));
  }
  return result;
}

// How often each of `count` indices was visited in `loops` loops; index `bad` of every loop throws.
std::vector<int64_t> pool_visits(int threads, int64_t loops, int64_t count, int64_t bad) {
  py::gil_scoped_release release;
  ThreadPool pool(threads);
  std::vector<int64_t> visits(static_cast<size_t>(count));
  for (int64_t loop = 0; loop < loops; ++loop) {
    try {
      pool.parallel_for(count, [&](int64_t index, int) {
        if (index == bad) throw UsageError("index");
        ++visits[static_cast<size_t>(index)];
      });
      if (bad >= 0) throw DeviceError("pool: found no exception, wanted that of a body");
    } catch (const UsageError&) {
    }
  }
  return visits;
}

}  // namespace

void bind_testing_machine(py::module_& testing) {
  testing.def("gpus", &gpus, "Those that the CUDA part sees; DeviceError where there is none.");
  testing.def("machine_limits", &machine_limits, py::arg("isa"), py::arg("threads"),
              "Bytes read, int8 and float32 operations, each a second, with all threads.");
  testing.def("pool_visits", &pool_visits, py::arg("threads"), py::arg("loops"), py::arg("count"),
              py::arg("bad") = -1);
  testing.def("default_thread_count", &default_thread_count);
  testing.def("cgroup_cpu_quota", &cgroup_cpu_quota, py::arg("list"), py::arg("mount"));
}

}  // namespace lola

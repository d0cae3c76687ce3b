// Copies of runs of device memory to shared memory that no thread waits for, and the barriers in
// shared memory that tell when they are there: from compute capability 9.0 on.
#pragma once

#include <cstdint>

namespace lola {

__device__ inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// A phase ends with its last arrival, and the next begins; phases are told apart by their parity.
struct Barrier {
  uint64_t state;

  __device__ void set(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals));
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // Arrives; the phase ends once `bytes` of copies are there too.
  __device__ void expect(int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
        "r"(bytes)
        : "memory");
  }
  // Until the phase of this parity has ended. That before the first has parity 1.
  __device__ void wait(unsigned parity) const {
    uint32_t ended = 0;
    while (ended == 0) {
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(ended)
          : "r"(shared_address(this)), "r"(parity)
          : "memory");
    }
  }
};

// What set() wrote is seen by copies. By the thread that called it.
__device__ inline void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// bytes: a multiple of 16, as the addresses are.
__device__ inline void bulk_copy(void* to, const void* from, int bytes, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}

}  // namespace lola

// The warpgroup products of compute capability 9.0: d [64, n] += a [64, 16] b [16, n], a in
// registers, b in shared memory; and what orders them. Empty for other GPUs.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace lola {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ inline uint32_t bits_of(const __half2& pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The low word of what describes b to the tensor cores: tokens in rows of 64 halves, 128 bytes,
// whose chunks of 16 are swizzled; 1024 bytes for every eight tokens. 1 stands for 16 bytes.
__device__ inline uint32_t wgmma_operand(uint32_t shared_address) {
  return (shared_address & 0x3FFFFu) >> 4 | 1u << 16;
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int in_flight>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(in_flight) : "memory");
}

// b: the whole of its description, with eight rows' bytes / 16 and the kind of swizzle. p: add.
#define LOLA_PRODUCT(index) \
  "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, 1, 0;\nmov.b64 b, {%" #index ", 0x40000040};\n"
#define LOLA_SUMS8(d, i)                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

// d [tokens / 2] of a lane: of every 8 tokens those at lane % 4 * 2 and the next, first of row
// lane / 4, then of row lane / 4 + 8 of the warp's 16.
template <int tokens>
__device__ void wgmma(float* d, const __half2* a, uint32_t b);

template <>
__device__ inline void wgmma<32>(float* d, const __half2* a, uint32_t b) {
  asm volatile(
      LOLA_PRODUCT(20)
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, b, p, 1, 1, 0;\n}\n"
      : LOLA_SUMS8(d, 0), LOLA_SUMS8(d, 8)
      : "r"(bits_of(a[0])), "r"(bits_of(a[1])), "r"(bits_of(a[2])), "r"(bits_of(a[3])), "r"(b));
}

template <>
__device__ inline void wgmma<64>(float* d, const __half2* a, uint32_t b) {
  asm volatile(
      LOLA_PRODUCT(36)
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, b, p, 1, 1, 0;\n}\n"
      : LOLA_SUMS8(d, 0), LOLA_SUMS8(d, 8), LOLA_SUMS8(d, 16), LOLA_SUMS8(d, 24)
      : "r"(bits_of(a[0])), "r"(bits_of(a[1])), "r"(bits_of(a[2])), "r"(bits_of(a[3])), "r"(b));
}

template <>
__device__ inline void wgmma<128>(float* d, const __half2* a, uint32_t b) {
  asm volatile(
      LOLA_PRODUCT(68)
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, b, p, 1, 1, 0;\n}\n"
      : LOLA_SUMS8(d, 0), LOLA_SUMS8(d, 8), LOLA_SUMS8(d, 16), LOLA_SUMS8(d, 24), LOLA_SUMS8(d, 32),
        LOLA_SUMS8(d, 40), LOLA_SUMS8(d, 48), LOLA_SUMS8(d, 56)
      : "r"(bits_of(a[0])), "r"(bits_of(a[1])), "r"(bits_of(a[2])), "r"(bits_of(a[3])), "r"(b));
}

// What describes vectors of floats to the tensor cores: eight vectors' runs of four, 16 bytes each,
// lie together, those of the next eight after them; `four_bytes` are from four values to the next.
__device__ inline uint32_t wgmma_vectors(uint32_t shared_address, uint32_t four_bytes) {
  return (shared_address & 0x3FFFFu) >> 4 | four_bytes >> 4 << 16;
}

#define LOLA_TF32_PRODUCT(index) \
  "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, 1, 0;\nmov.b64 b, {%" #index ", 0x00000008};\n"

// d [64, vectors] += a [64, 8] and 8 values of each vector, in tf32; d and a as mma has them for 16
// rows and 8 vectors.
template <int vectors>
__device__ void wgmma_tf32(float* d, const uint32_t (&a)[4], uint32_t b);

template <>
__device__ inline void wgmma_tf32<32>(float* d, const uint32_t (&a)[4], uint32_t b) {
  asm volatile(
      LOLA_TF32_PRODUCT(20)
      "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, b, p, 1, 1;\n}\n"
      : LOLA_SUMS8(d, 0), LOLA_SUMS8(d, 8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));
}

template <>
__device__ inline void wgmma_tf32<64>(float* d, const uint32_t (&a)[4], uint32_t b) {
  asm volatile(
      LOLA_TF32_PRODUCT(36)
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, b, p, 1, 1;\n}\n"
      : LOLA_SUMS8(d, 0), LOLA_SUMS8(d, 8), LOLA_SUMS8(d, 16), LOLA_SUMS8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));
}

#undef LOLA_SUMS8
#undef LOLA_PRODUCT
#undef LOLA_TF32_PRODUCT

// What threads wrote to shared memory is seen by products.
__device__ inline void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif

}  // namespace lola

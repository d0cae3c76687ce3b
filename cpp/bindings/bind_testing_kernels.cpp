#include <pybind11/numpy.h>

#include <string>

#include "base/error.h"
#include "bindings/bindings.h"
#include "kernels/kernel_sets.h"

namespace lola {
namespace {

namespace py = pybind11;

// Taken as they are, never converted: kernels write into them, and rows may be further apart than
// they are long.
using Floats = py::array_t<float, 0>;
using Halves = py::array_t<uint16_t, 0>;
using Bytes = py::array_t<uint8_t, 0>;

void require(bool condition, const char* wanted) {
  if (!condition) throw UsageError(message("kernel arguments: wanted ", wanted));
}

template <typename Array>
int64_t length(const Array& x) {
  require(x.ndim() == 1, "one dimension");
  require(x.size() <= 1 || x.strides(0) == x.itemsize(), "neighbouring values");
  return x.size();
}

int64_t row_stride(const Floats& x) {
  constexpr py::ssize_t kSize = sizeof(float);
  require(x.ndim() == 2, "two dimensions");
  if (x.size() == 0) return x.shape(1);
  require(x.shape(1) <= 1 || x.strides(1) == kSize, "neighbouring values in a row");
  require(x.shape(0) <= 1 || (x.strides(0) > 0 && x.strides(0) % kSize == 0), "rows of floats");
  return x.strides(0) / kSize;
}

const Kernels& kernels_of(const std::string& isa) { return kernels_by_name(isa.c_str()); }

py::list list_isas() {
  py::list names;
  for (const char* const* name = available_isas(); *name != nullptr; ++name) names.append(*name);
  return names;
}

void gemm(const std::string& isa, const std::string& kind, const Floats& a, const Floats& b,
          Floats& c) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t lda = row_stride(a), ldb = row_stride(b), ldc = row_stride(c);
  const bool a_transposed = kind == "tn", b_transposed = kind == "nt";
  require(a_transposed || b_transposed || kind == "nn", "'nt', 'nn' or 'tn'");
  const int64_t m = c.shape(0), n = c.shape(1), k = a.shape(a_transposed ? 0 : 1);
  require(a.shape(a_transposed ? 1 : 0) == m && b.shape(b_transposed ? 0 : 1) == n &&
              b.shape(b_transposed ? 1 : 0) == k,
          "shapes that fit together");
  const auto run = b_transposed   ? kernels.gemm_nt
                   : a_transposed ? kernels.gemm_tn
                                  : kernels.gemm_nn;
  run(m, n, k, a.data(), lda, b.data(), ldb, c.mutable_data(), ldc);
}

// b as pairs are stored: halves [rows, columns], or blocks of q8_0 as bytes [rows, bytes of a row].
void gemm_of_pairs(const std::string& isa, const std::string& kind, const Floats& a,
                   const py::array& b, Floats& c) {
  const Kernels& kernels = kernels_of(isa);
  const bool transposed = kind == "nt";
  require(transposed || kind == "nn", "'nt' or 'nn'");
  const int64_t m = c.shape(0), n = c.shape(1), k = a.shape(1);
  require(b.ndim() == 2 && (b.flags() & py::array::c_style) != 0, "whole rows");
  require(a.shape(0) == m && b.shape(0) == (transposed ? n : k), "shapes that fit together");
  const int64_t columns = transposed ? k : n;
  const auto run = [&](auto kernel, auto* values) {
    kernel(m, n, k, a.data(), row_stride(a), values, columns, c.mutable_data(), row_stride(c));
  };
  if (py::isinstance<Halves>(b)) {
    require(b.shape(1) == columns, "shapes that fit together");
    const auto* halves = static_cast<const uint16_t*>(b.data());
    return run(transposed ? kernels.gemm_nt_f16 : kernels.gemm_nn_f16, halves);
  }
  require(py::isinstance<Bytes>(b) && columns % kQ8BlockSize == 0 &&
              b.shape(1) == columns / kQ8BlockSize * kQ8BlockBytes,
          "halves, or 34 bytes per 32 values");
  const auto* blocks = static_cast<const uint8_t*>(b.data());
  run(transposed ? kernels.gemm_nt_q8_0 : kernels.gemm_nn_q8_0, blocks);
}

void exp_features(const std::string& isa, Floats& row, int64_t n, bool normalise, float least) {
  require(n >= 1 && (length(row) == n || length(row) == 2 * n), "n values, or room for 2 n");
  kernels_of(isa).exp_features(row.mutable_data(), n, length(row) != n, normalise, least);
}

float max(const std::string& isa, const Floats& x) {
  require(length(x) >= 1, "at least one value");
  return kernels_of(isa).max(x.data(), length(x));
}

float dot(const std::string& isa, const Floats& a, const Floats& b) {
  require(length(a) == length(b), "equal lengths");
  return kernels_of(isa).dot(a.data(), b.data(), length(a));
}

float squared_distance(const std::string& isa, const Floats& a, const Floats& b) {
  require(length(a) == length(b), "equal lengths");
  return kernels_of(isa).squared_distance(a.data(), b.data(), length(a));
}

void scale(const std::string& isa, Floats& x, float factor) {
  kernels_of(isa).scale(x.mutable_data(), length(x), factor);
}

float exp_shift(const std::string& isa, Floats& x, float shift) {
  return kernels_of(isa).exp_shift(x.mutable_data(), length(x), shift);
}

void rms_norm(const std::string& isa, const Floats& x, const Floats& weight, float eps,
              Floats& out) {
  require(length(x) == length(weight) && length(x) == length(out), "equal lengths");
  kernels_of(isa).rms_norm(x.data(), weight.data(), length(x), eps, out.mutable_data());
}

void silu_gate(const std::string& isa, Floats& gate, const Floats& up) {
  require(length(gate) == length(up), "equal lengths");
  kernels_of(isa).silu_gate(gate.mutable_data(), up.data(), length(gate));
}

void add(const std::string& isa, Floats& x, const Floats& y) {
  require(length(x) == length(y), "equal lengths");
  kernels_of(isa).add(x.mutable_data(), y.data(), length(x));
}

void rope(const std::string& isa, Floats& x, const Floats& cosine, const Floats& sine,
          bool interleaved) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t pairs = length(cosine);
  require(length(sine) == pairs && length(x) >= 2 * pairs, "two values for every angle");
  const auto run = interleaved ? kernels.rope_interleaved : kernels.rope_half;
  run(x.mutable_data(), cosine.data(), sine.data(), pairs);
}

void widen(const std::string& isa, const Halves& x, Floats& out) {
  require(length(x) == length(out), "equal lengths");
  kernels_of(isa).f16_to_f32(x.data(), length(x), out.mutable_data());
}

void narrow(const std::string& isa, const Floats& x, Halves& out) {
  require(length(x) == length(out), "equal lengths");
  kernels_of(isa).f32_to_f16(x.data(), length(x), out.mutable_data());
}

void require_q8_0(const Floats& values, const Bytes& blocks) {
  require(length(values) % kQ8BlockSize == 0, "a multiple of 32 values");
  require(length(blocks) == length(values) / kQ8BlockSize * kQ8BlockBytes,
          "34 bytes per 32 values");
}

void decode_q8_0(const std::string& isa, const Bytes& blocks, Floats& out) {
  require_q8_0(out, blocks);
  kernels_of(isa).q8_0_to_f32(blocks.data(), length(out), out.mutable_data());
}

void encode_q8_0(const std::string& isa, const Floats& x, Bytes& out) {
  require_q8_0(x, out);
  kernels_of(isa).f32_to_q8_0(x.data(), length(x), out.mutable_data());
}

}  // namespace

void bind_testing_kernels(py::module_& testing) {
  const auto as_is = [](const char* name) { return py::arg(name).noconvert(); };
  const py::arg isa("isa");
  testing.def("available_isas", list_isas);
  testing.def("selected_isa", [] { return select_kernels().name; });
  testing.def("gemm", gemm, isa, py::arg("kind"), as_is("a"), as_is("b"), as_is("c"));
  testing.def("gemm_of_pairs", gemm_of_pairs, isa, py::arg("kind"), as_is("a"), as_is("b"),
              as_is("c"));
  testing.def("exp_features", exp_features, isa, as_is("row"), py::arg("n"), py::arg("normalise"),
              py::arg("least"));
  testing.def("max", max, isa, as_is("x"));
  testing.def("dot", dot, isa, as_is("a"), as_is("b"));
  testing.def("scale", scale, isa, as_is("x"), py::arg("factor"));
  testing.def("exp_shift", exp_shift, isa, as_is("x"), py::arg("shift"));
  testing.def("squared_distance", squared_distance, isa, as_is("a"), as_is("b"));
  testing.def("rms_norm", rms_norm, isa, as_is("x"), as_is("weight"), py::arg("eps"), as_is("out"));
  testing.def("silu_gate", silu_gate, isa, as_is("gate"), as_is("up"));
  testing.def("add", add, isa, as_is("x"), as_is("y"));
  testing.def("rope", rope, isa, as_is("x"), as_is("cosine"), as_is("sine"),
              py::arg("interleaved"));
  testing.def("f16_to_f32", widen, isa, as_is("x"), as_is("out"));
  testing.def("f32_to_f16", narrow, isa, as_is("x"), as_is("out"));
  testing.def("q8_0_to_f32", decode_q8_0, isa, as_is("blocks"), as_is("out"));
  testing.def("f32_to_q8_0", encode_q8_0, isa, as_is("x"), as_is("out"));
}

}  // namespace lola

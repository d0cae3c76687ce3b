// Compares matmul() of every instruction set of this machine with the scalar one, on random blocks
// of every format. Needs nothing but the core, so that it also runs under an emulator.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/matmul.h"
#include "kernels/matmul_kernels.h"

namespace {

// Each path sums up to 4096 products in float32, in its own order; the integer parts are equal.
constexpr double kRelative = 2e-6;

std::mt19937 generator(7);

std::vector<float> random_floats(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& value : out) value = normal(generator);
  return out;
}

// Random bytes, block by block until the block decodes to finite numbers of a common magnitude.
std::vector<uint8_t> random_blocks(const lola::QuantFormat& format, int64_t count) {
  std::uniform_int_distribution<int> byte(0, 255);
  const auto bytes = static_cast<size_t>(format.block_bytes);
  std::vector<uint8_t> out(static_cast<size_t>(count) * bytes);
  std::vector<float> decoded(static_cast<size_t>(format.block_size));
  for (int64_t i = 0; i < count; ++i) {
    uint8_t* block = out.data() + static_cast<size_t>(i) * bytes;
    float largest = NAN;
    while (!(largest <= 1e4f)) {
      for (size_t j = 0; j < bytes; ++j) block[j] = static_cast<uint8_t>(byte(generator));
      format.decode(block, 1, decoded.data());
      largest = 0;
      for (float value : decoded) largest = std::fabs(value) > largest ? std::fabs(value) : largest;
      for (float value : decoded) largest += 0 * value;  // NaN if any is not finite
    }
  }
  return out;
}

struct Shape {
  int64_t rows, cols, tokens;
};

struct Case {
  const lola::QuantFormat* format;
  Shape shape;
  std::vector<uint8_t> blocks;
  std::vector<uint8_t> panels;
  std::vector<float> x;
  std::vector<float> bias;
};

std::vector<uint8_t> in_panels(const lola::WeightMatrix& rows) {
  std::vector<uint8_t> panels(static_cast<size_t>(lola::panel_bytes(rows)));
  for (int64_t i = 0; i * lola::kPanelRows < rows.rows; ++i) {
    lola::write_panel(rows, i, panels.data());
  }
  return panels;
}

std::vector<float> run(const lola::MatmulKernels& isa, const Case& c) {
  lola::Kernels kernels{};
  kernels.matmul = &isa;
  lola::ThreadPool pool(1);
  lola::MatmulScratch scratch;
  const lola::WeightMatrix weight{c.format, c.panels.data(), c.shape.rows, c.shape.cols, true};
  std::vector<float> out(static_cast<size_t>(c.shape.tokens * c.shape.rows), 0.5f);
  const lola::MatmulJob job{&weight, c.bias.data(), out.data(), c.shape.rows, true};
  lola::matmul(kernels, pool, scratch, c.x.data(), c.shape.cols, c.shape.tokens, {&job, 1});
  return out;
}

// The sum of |weight| * |activation|, which bounds the rounding of a dot product.
double magnitude(const Case& c, int64_t row, int64_t token) {
  std::vector<float> weights(static_cast<size_t>(c.shape.cols));
  lola::decode_row({c.format, c.blocks.data(), c.shape.rows, c.shape.cols}, row, weights.data());
  double sum = 1;
  for (int64_t i = 0; i < c.shape.cols; ++i) {
    sum += std::fabs(static_cast<double>(weights[static_cast<size_t>(i)]) *
                     c.x[static_cast<size_t>(token * c.shape.cols + i)]);
  }
  return sum;
}

int compare(const char* name, const lola::MatmulKernels& isa, const Case& c) {
  const std::vector<float> wanted = run(lola::kMatmulScalar, c);
  const std::vector<float> found = run(isa, c);
  for (int64_t token = 0; token < c.shape.tokens; ++token) {
    for (int64_t row = 0; row < c.shape.rows; ++row) {
      const auto i = static_cast<size_t>(token * c.shape.rows + row);
      if (std::fabs(found[i] - wanted[i]) <= kRelative * magnitude(c, row, token)) continue;
      std::printf("%s %s rows %d cols %d tokens %d: [%d, %d] found %.9g, wanted %.9g\n", name,
                  c.format->name, static_cast<int>(c.shape.rows), static_cast<int>(c.shape.cols),
                  static_cast<int>(c.shape.tokens), static_cast<int>(token), static_cast<int>(row),
                  found[i], wanted[i]);
      return 1;
    }
  }
  return 0;
}

int check(const char* name, const lola::MatmulKernels& isa) {
  int failures = 0;
  int cases = 0;
  for (const lola::QuantFormat& format : lola::quant_formats()) {
    for (const Shape shape : {Shape{3, 256, 1}, Shape{17, 320, 3}, Shape{5, 768, 8},
                              Shape{70, 512, 9}, Shape{33, 1344, 23}}) {
      Case c{&format, shape, {}, {}, {}, {}};
      if (format.block_size == 1) c.shape.cols -= 13;
      c.shape.cols -= c.shape.cols % format.block_size;
      c.blocks = random_blocks(format, c.shape.rows * c.shape.cols / format.block_size);
      c.panels = in_panels({&format, c.blocks.data(), c.shape.rows, c.shape.cols});
      c.x = random_floats(c.shape.tokens * c.shape.cols);
      c.bias = random_floats(c.shape.rows);
      failures += compare(name, isa, c);
      ++cases;
    }
  }
  std::printf("%s: %d of %d cases differ from scalar\n", name, failures, cases);
  return failures;
}

}  // namespace

int main() {
  int failures = 0;
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx2")) failures += check("avx2", lola::kMatmulAvx2);
  if (__builtin_cpu_supports("avx512vnni")) failures += check("avx512", lola::kMatmulAvx512);
#elif defined(__aarch64__)
  failures += check("neon", lola::kMatmulNeon);
#endif
  return failures != 0;
}

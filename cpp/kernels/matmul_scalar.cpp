// The reference of the other instruction sets: row by row, through the table of formats.
#include "kernels/matmul_plain.h"

namespace lola {
namespace {

constexpr int64_t kColumns = 256;  // of a row that are read at a time

// Columns of one row, from first_col on, in the form that its format is multiplied in.
struct RowPart {
  int64_t first_col;
  int64_t cols;
  uint8_t blocks[kColumns * sizeof(float)];
  float values[kColumns];  // of float weights
  int8_t q[kColumns];      // of the others: scale * q - min
  float scale[kColumns / 16];
  float min[kColumns / 16];
};

struct Workspace {
  RowPart part;
  float sums[kMaxRunTokens];
};

void read_part(const WeightMatrix& weight, int64_t row, int64_t first_col, RowPart& part) {
  const QuantFormat& format = *weight.format;
  part.first_col = first_col;
  part.cols = smaller(kColumns, weight.cols - first_col);
  const int64_t count = part.cols / format.block_size;
  read_blocks(weight, row, first_col / format.block_size, count, part.blocks);
  if (format.group_size == 0) {
    format.decode(part.blocks, count, part.values);
  } else {
    format.unpack(part.blocks, count, part.q, part.scale, part.min);
  }
}

float float_dot(const RowPart& part, const float* x, float sum) {
  for (int64_t i = 0; i < part.cols; ++i) sum += part.values[i] * x[part.first_col + i];
  return sum;
}

float quantized_dot(const QuantFormat& format, const RowPart& part, const ActivationGroup* groups,
                    int64_t tokens, float sum) {
  const int64_t size = format.group_size;
  for (int64_t i = 0; i < part.cols; i += size) {
    const ActivationGroup& a = groups[(part.first_col + i) / kGroup * tokens];
    const int64_t first = i % kGroup;
    int32_t products = 0;
    for (int64_t j = 0; j < size; ++j) products += part.q[i + j] * a.q[first + j];
    sum += static_cast<float>(products) * a.scale * part.scale[i / size];
    if (format.has_min)
      sum -= part.min[i / size] * (size == kGroup ? a.sum : a.half_sum[first / 16]);
  }
  return sum;
}

void multiply_row(const MatmulTile& tile, int64_t row, int64_t first_token, int64_t tokens,
                  Workspace& space) {
  const WeightMatrix& weight = *tile.weight;
  const bool floats = weight.format->group_size == 0;
  for (int64_t t = 0; t < tokens; ++t) space.sums[t] = 0;
  for (int64_t col = 0; col < weight.cols; col += kColumns) {
    read_part(weight, row, col, space.part);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t token = first_token + t;
      float& sum = space.sums[t];
      sum = floats
                ? float_dot(space.part, tile.x + token * tile.x_stride, sum)
                : quantized_dot(*weight.format, space.part, tile.groups + token, tile.tokens, sum);
    }
  }
}

void multiply(const MatmulTile& tile, uint8_t* scratch) {
  auto& space = *reinterpret_cast<Workspace*>(scratch);
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    for (int64_t first = 0; first < tile.tokens; first += kMaxRunTokens) {
      const int64_t tokens = smaller(kMaxRunTokens, tile.tokens - first);
      multiply_row(tile, row, first, tokens, space);
      for (int64_t t = 0; t < tokens; ++t) store(tile, row, 1, first + t, space.sums + t);
    }
  }
}

}  // namespace

constinit const MatmulKernels kMatmulScalar = {sizeof(Workspace), round_activations_plain,
                                               multiply};

}  // namespace lola

// Whole layers by themselves, for the tests: LoLA with its three memories, and softmax over a KV
// cache.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "lola/advance.h"
#include "lola/pair_rows.h"
#include "lola/score.h"
#include "lola/softmax_attend.h"
#include "memory/kv_cache.h"
#include "memory/layer_memory.h"
#include "memory/policies/policy_table.h"

namespace py = pybind11;

namespace lola {
namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

// q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim].
QkvRows rows_of(const AttentionShape& shape, const FloatArray& q, const FloatArray& k,
                const FloatArray& v) {
  const auto check = [&](const char* what, const FloatArray& x, int64_t heads) {
    if (x.ndim() != 3 || x.shape(0) != q.shape(0) || x.shape(1) != heads ||
        x.shape(2) != shape.head_dim) {
      throw UsageError(message(what, ": wanted [tokens, ", heads, ", ", shape.head_dim, "]"));
    }
  };
  check("q", q, shape.heads);
  check("k", k, shape.kv_heads);
  check("v", v, shape.kv_heads);
  return {q.data(), shape.heads * shape.head_dim,   k.data(), shape.kv_heads * shape.head_dim,
          v.data(), shape.kv_heads * shape.head_dim};
}

std::vector<float> copy_weights(const char* what, const FloatArray& x, int64_t wanted) {
  if (x.size() != wanted)
    throw UsageError(message(what, ": found ", x.size(), " values, wanted ", wanted));
  return {x.data(), x.data() + x.size()};
}

// A section's values: pairs as float32, the others as they are.
py::array read_section(const Kernels& kernels, PairType pair_type, const MemorySection& section,
                       const uint8_t* memory) {
  if (section.element == MemorySection::Element::kI64) {
    return py::array_t<int64_t>(section.shape,
                                reinterpret_cast<const int64_t*>(memory + section.offset));
  }
  py::array_t<float> out(section.shape);
  const PairType type =
      section.element == MemorySection::Element::kPair ? pair_type : PairType::kF32;
  load_pairs(kernels, type, memory + section.offset, out.size(), out.mutable_data());
  return out;
}

py::dict read_sections(const Kernels& kernels, PairType pair_type,
                       const std::vector<MemorySection>& sections, const uint8_t* memory) {
  py::dict out;
  for (const MemorySection& section : sections) {
    out[section.name.c_str()] = read_section(kernels, pair_type, section, memory);
  }
  return out;
}

// Zero-filled bytes, aligned to 8.
class Arena {
 public:
  explicit Arena(int64_t bytes) : words_(static_cast<size_t>((bytes + 7) / 8)) {}
  uint8_t* data() { return reinterpret_cast<uint8_t*>(words_.data()); }

 private:
  std::vector<uint64_t> words_;
};

class TestLolaLayer {
 public:
  TestLolaLayer(const std::string& isa, const AttentionShape& shape, const LolaConfig& config,
                const FeatureMap& map, const FloatArray& query_map, const FloatArray& key_map,
                const FloatArray& gate, const FloatArray& kappa)
      : kernels_(kernels_by_name(isa.c_str())),
        config_(config),
        layout_(shape, config),
        query_map_(
            copy_weights("query_map", query_map, shape.heads * map.map_size * shape.head_dim)),
        key_map_(copy_weights("key_map", key_map, shape.heads * map.map_size * shape.head_dim)),
        gate_(copy_weights("gate", gate, shape.heads)),
        kappa_(copy_weights("kappa", kappa, shape.heads)),
        layer_{shape, map, query_map_.data(), key_map_.data(), gate_.data(), kappa_.data()},
        arena_(layout_.bytes()) {}

  FloatArray advance(const FloatArray& q, const FloatArray& k, const FloatArray& v) {
    const QkvRows rows = rows_of(layer_.shape, q, k, v);
    const int64_t tokens = q.shape(0);
    FloatArray out({tokens, layer_.shape.heads, layer_.shape.head_dim});
    float* y = out.mutable_data();
    py::gil_scoped_release unlocked;
    for (int64_t kv_head = 0; kv_head < layer_.shape.kv_heads; ++kv_head) {
      advance_kv_head(kernels_, layer_, config_, layout_, arena_.data(), kv_head, rows, tokens,
                      position_, y, layer_.shape.heads * layer_.shape.head_dim, scratch_);
    }
    position_ += tokens;
    return out;
  }

  py::dict sections() {
    return read_sections(kernels_, config_.pair_type, layout_.sections(), arena_.data());
  }

  py::dict counts() const {
    const MemoryCounts counts = counts_at(config_, position_);
    py::dict out;
    out["window"] = counts.window;
    out["cache"] = counts.cache;
    out["absorbed"] = counts.absorbed;
    return out;
  }

  int64_t bytes() const { return layout_.bytes(); }

 private:
  const Kernels& kernels_;
  LolaConfig config_;
  LayerMemoryLayout layout_;
  std::vector<float> query_map_;
  std::vector<float> key_map_;
  std::vector<float> gate_;
  std::vector<float> kappa_;
  LolaLayer layer_;
  Arena arena_;
  LolaScratch scratch_;
  int64_t position_ = 0;
};

class TestSoftmaxLayer {
  static constexpr int64_t kLayerOffset = 64;  // as if another layer stood before it

 public:
  TestSoftmaxLayer(const std::string& isa, const AttentionShape& shape, PairType pair_type)
      : kernels_(kernels_by_name(isa.c_str())), shape_(shape), layout_(shape, pair_type) {}

  // ranges: how many parts the cache is read in; 0 reads it in one pass.
  FloatArray advance(const FloatArray& q, const FloatArray& k, const FloatArray& v,
                     int64_t ranges) {
    const QkvRows rows = rows_of(shape_, q, k, v);
    const int64_t tokens = q.shape(0);
    while (std::ssize(pages_) * kKvPageTokens < position_ + tokens) {
      arenas_.emplace_back(kLayerOffset + layout_.bytes());
      pages_.push_back(arenas_.back().data());
    }
    FloatArray out({tokens, shape_.heads, shape_.head_dim});
    const int64_t stride = shape_.heads * shape_.head_dim;
    for (int64_t kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) {
      const SoftmaxHead head{kernels_, shape_,  layout_, {pages_.data(), kLayerOffset},
                             kv_head,  scratch_};
      append_to_cache(head, rows, tokens, position_);
      if (ranges == 0) {
        softmax_attend(head, rows.q, rows.q_stride, tokens, position_, out.mutable_data(), stride);
      } else {
        attend_in_ranges(head, rows, tokens, ranges, out.mutable_data(), stride);
      }
    }
    position_ += tokens;
    return out;
  }

  // Of each page.
  std::vector<py::dict> sections() {
    std::vector<py::dict> pages;
    for (uint8_t* page : pages_) {
      pages.push_back(
          read_sections(kernels_, layout_.pair_type(), layout_.sections(), page + kLayerOffset));
    }
    return pages;
  }

 private:
  void attend_in_ranges(const SoftmaxHead& head, const QkvRows& rows, int64_t tokens,
                        int64_t ranges, float* out, int64_t out_stride) {
    const int64_t query_rows = shape_.group_size() * tokens;
    const int64_t size = exact_sums_size(query_rows, shape_.head_dim);
    std::vector<float> memory(static_cast<size_t>(2 * size));
    const ExactSums whole = start_exact_sums(memory.data(), query_rows, shape_.head_dim);
    const int64_t end = position_ + tokens;
    for (int64_t range = 0; range < ranges; ++range) {
      const ExactSums part = start_exact_sums(memory.data() + size, query_rows, shape_.head_dim);
      softmax_attend_range(head, rows.q, rows.q_stride, tokens, position_, end * range / ranges,
                           end * (range + 1) / ranges, part);
      merge_exact_sums(kernels_, query_rows, shape_.head_dim, part, whole);
    }
    write_softmax(shape_, head.index, tokens, whole, out, out_stride);
  }

  const Kernels& kernels_;
  AttentionShape shape_;
  KvPageLayout layout_;
  std::deque<Arena> arenas_;
  std::vector<uint8_t*> pages_;
  LolaScratch scratch_;
  int64_t position_ = 0;
};

LolaConfig make_config(int64_t window_size, int64_t chunk_size, int64_t sparse_size,
                       const std::string& scope, const std::string& policy,
                       const std::string& mixing, bool affine, const std::string& pair_type,
                       uint64_t seed) {
  return {window_size,
          chunk_size,
          sparse_size,
          find_scope(scope),
          &find_policy(policy),
          find_mixing(mixing),
          affine,
          find_pair_type(pair_type),
          seed};
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const CachePolicy& policy : kCachePolicies) names.emplace_back(policy.name);
  return names;
}

std::vector<bool> kept_pairs(const std::vector<float>& scores, int64_t capacity) {
  ScratchArray<int64_t> ranking;
  std::vector<uint8_t> kept(scores.size());
  choose_kept(scores.data(), static_cast<int64_t>(scores.size()), capacity, ranking, kept.data());
  return {kept.begin(), kept.end()};
}

}  // namespace

void bind_testing_lola(py::module_& testing) {
  testing.def("cache_policies", policy_names);
  testing.def("choose_kept", kept_pairs, py::arg("scores"), py::arg("capacity"));

  py::class_<TestLolaLayer>(testing, "LolaLayer")
      .def(py::init([](const std::string& isa, int64_t heads, int64_t kv_heads, int64_t head_dim,
                       int64_t map_size, const std::string& feature_map, bool skip,
                       const FloatArray& query_map, const FloatArray& key_map,
                       const FloatArray& gate, const FloatArray& kappa, int64_t window_size,
                       int64_t chunk_size, int64_t sparse_size, const std::string& scope,
                       const std::string& policy, const std::string& mixing, bool affine,
                       const std::string& pair_type, uint64_t seed) {
             const FeatureMap map{find_feature_map(feature_map), map_size, skip};
             const LolaConfig config = make_config(window_size, chunk_size, sparse_size, scope,
                                                   policy, mixing, affine, pair_type, seed);
             return new TestLolaLayer(isa, {heads, kv_heads, head_dim, feature_size(map)}, config,
                                      map, query_map, key_map, gate, kappa);
           }),
           py::kw_only(), py::arg("isa"), py::arg("heads"), py::arg("kv_heads"),
           py::arg("head_dim"), py::arg("map_size"), py::arg("feature_map"), py::arg("skip"),
           py::arg("query_map"), py::arg("key_map"), py::arg("gate"), py::arg("kappa"),
           py::arg("window_size"), py::arg("chunk_size"), py::arg("sparse_size"), py::arg("scope"),
           py::arg("policy"), py::arg("mixing"), py::arg("affine"), py::arg("pair_type"),
           py::arg("seed"))
      .def("advance", &TestLolaLayer::advance, py::arg("q"), py::arg("k"), py::arg("v"))
      .def("sections", &TestLolaLayer::sections)
      .def("counts", &TestLolaLayer::counts)
      .def_property_readonly("bytes", &TestLolaLayer::bytes);

  py::class_<TestSoftmaxLayer>(testing, "SoftmaxLayer")
      .def(py::init([](const std::string& isa, int64_t heads, int64_t kv_heads, int64_t head_dim,
                       const std::string& pair_type) {
             return new TestSoftmaxLayer(isa, {heads, kv_heads, head_dim, 0},
                                         find_pair_type(pair_type));
           }),
           py::kw_only(), py::arg("isa"), py::arg("heads"), py::arg("kv_heads"),
           py::arg("head_dim"), py::arg("pair_type"))
      .def("advance", &TestSoftmaxLayer::advance, py::arg("q"), py::arg("k"), py::arg("v"),
           py::arg("ranges") = 0)
      .def("sections", &TestSoftmaxLayer::sections);
}

}  // namespace lola

#include "models/inspect.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/kernels.h"
#include "lola/pair_rows.h"
#include "lola/score.h"
#include "lola/sliding_window.h"
#include "memory/policies/policy_table.h"
#include "models/workspace.h"

namespace lola {

// Works on copies in host memory, so that it serves every backend.
class Inspection {
 public:
  Inspection(const Session& session, int64_t layer)
      : workspaces_(session.model_->borrow_workspaces()),
        config_(session.config_.lola),
        layout_(session.layout_.lola()),
        position_(session.position_),
        memory_(static_cast<size_t>(layout_.bytes())) {
    const AttentionLayer& attention =
        session.model_->attention().layers[static_cast<size_t>(layer)];
    const size_t stage = session.model_->stages().of_layer(layer);
    session.memory_.read({stage, kNoPage, session.layout_.offset(layer), layout_.bytes()},
                         memory_.data(), *workspaces_);
    Executor& executor = (*workspaces_)[stage].executor();
    key_map_ = host_copy(attention.key_map, executor);
    kappa_ = host_copy(attention.kappa, executor);
    layer_ = *attention.lola;
    layer_.key_map = key_map_.data();
    layer_.kappa = kappa_.data();
    config_.policy = &find_policy("self_recall");
    config_.scope = Scope::kHead;  // each query head has an error of its own
  }

  std::vector<HeadPairs> run(const LolaConfig& config) {
    std::vector<HeadPairs> heads;
    for (int64_t head = 0; head < layer_.shape.heads; ++head) {
      heads.push_back(pairs_of(head, config));
    }
    return heads;
  }

 private:
  static std::vector<float> host_copy(const Buffer& buffer, Executor& executor) {
    std::vector<float> copy(static_cast<size_t>(buffer.bytes()) / sizeof(float));
    executor.download(copy.data(), buffer.as<float>(), buffer.bytes());
    return copy;
  }

  HeadPairs pairs_of(int64_t query_head, const LolaConfig& config) {
    const int64_t group = layer_.shape.group_size();
    const KvHead head{kernels_by_name("scalar"), layer_,  config_, layout_, memory_.data(),
                      query_head / group,        scratch_};
    const KvHead stored{head.kernels,   layer_,     config,  layout_,
                        memory_.data(), head.index, scratch_};
    const MemoryCounts counts = counts_at(config, position_);
    const int64_t d = head.head_dim();
    const int64_t count = counts.cache + counts.window;
    HeadPairs pairs{std::vector<int64_t>(static_cast<size_t>(count)),
                    std::vector<float>(static_cast<size_t>(count)), counts.cache};
    std::vector<float> keys(static_cast<size_t>(count * d));
    std::vector<float> values(keys.size());
    if (counts.cache > 0) {
      const int64_t owner = (query_head - head.first_query_head()) / stored.heads_per_owner();
      const SparseCache cache = stored.sparse_cache(owner);
      load_pairs(head.kernels, config.pair_type, cache.k, counts.cache * d, keys.data());
      load_pairs(head.kernels, config.pair_type, cache.v, counts.cache * d, values.data());
      std::copy_n(cache.position, counts.cache, pairs.position.begin());
    }
    const int64_t begin = window_begin(config, position_);
    load_window(stored, begin, counts.window, keys.data() + counts.cache * d,
                values.data() + counts.cache * d);
    for (int64_t i = 0; i < counts.window; ++i) {
      pairs.position[static_cast<size_t>(counts.cache + i)] = begin + i;
    }
    const int64_t owner = query_head - head.first_query_head();
    std::vector<float> phi(static_cast<size_t>(count * layer_.shape.feature_size));
    map_for_owner(head, owner, keys.data(), count, phi.data());
    score_pairs(head, owner, {keys.data(), values.data(), phi.data(), pairs.position.data(), count},
                position_, counts.absorbed, pairs.error.data());
    return pairs;
  }

  Model::WorkspacesHandle workspaces_;
  LolaConfig config_;
  const LayerMemoryLayout& layout_;
  int64_t position_;
  std::vector<uint8_t> memory_;
  std::vector<float> key_map_;
  std::vector<float> kappa_;
  LolaLayer layer_;
  LolaScratch scratch_;
};

std::vector<HeadPairs> recall_errors(const Session& session, int64_t layer) {
  const auto lock = session.use();
  if (layer < 0 || layer >= session.layout().layers() || !session.layout().is_lola(layer)) {
    throw UsageError(message("layer: found ", layer, ", wanted one with LoLA attention"));
  }
  return Inspection(session, layer).run(session.config().lola);
}

}  // namespace lola

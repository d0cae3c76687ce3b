// A loaded model: immutable, and shared by all the sessions and threads that use it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf_reader.h"
#include "models/adapter.h"
#include "models/hyperparameters.h"
#include "models/rope.h"
#include "models/stages.h"
#include "models/weights.h"
#include "models/workspace.h"

namespace lola {

struct ModelOptions {
  std::string adapter_path;  // empty: none beside the file
  std::string device = "cpu";
  int threads = 0;  // 0: physical cores
  int64_t device_layers = kAllLayers;
  LoadProgress progress{};
};

class Model {
 public:
  // Errors of the GGUF reader, and FormatError or UnsupportedError where the model is not one that
  // can run.
  static std::shared_ptr<const Model> load(const std::string& path, const ModelOptions& options);
  ~Model();

  const Hyperparameters& hyperparameters() const { return hyperparameters_; }
  const Weights& weights() const { return weights_; }
  const Attention& attention() const { return attention_; }
  const Rope& rope() const { return rope_; }
  const Stages& stages() const { return stages_; }
  const std::shared_ptr<const GgufFile>& file() const { return file_; }
  int64_t weight_bytes() const;  // of the files

  // Identifies model and adapter by their metadata and samples of every tensor: 32 hexadecimal
  // digits.
  const std::string& fingerprint() const { return fingerprint_; }

  // Whether all of a pass runs on devices that work on while the host goes on.
  bool runs_behind() const { return stages_.run_behind(); }

  // Activations and scratch of one pass, reused; their latest pass is over. Returned when the
  // handle goes.
  using WorkspacesHandle = std::unique_ptr<Workspaces, std::function<void(Workspaces*)>>;
  WorkspacesHandle borrow_workspaces() const;

 private:
  Model(std::shared_ptr<const GgufFile> file, std::shared_ptr<const GgufFile> adapter,
        const ModelOptions& options);

  Stages make_stages(const ModelOptions& options) const;

  std::shared_ptr<const GgufFile> file_;
  std::shared_ptr<const GgufFile> adapter_;  // null for plain and one-file models
  Hyperparameters hyperparameters_;
  Rope rope_;
  Stages stages_;
  std::string fingerprint_;  // before the weights: loading them gives back the pages it touched
  Weights weights_;
  Attention attention_;

  mutable std::mutex workspace_mutex_;
  mutable std::vector<std::unique_ptr<Workspaces>> idle_workspaces_;
};

}  // namespace lola

// Softmax attention on the CPU: how the work of one layer is shared among threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/thread_pool.h"
#include "lola/softmax_attend.h"

namespace lola {

// scratch: one per thread. partials: reused memory.
void cpu_softmax_attention(const Kernels& kernels, ThreadPool& pool, const AttentionShape& shape,
                           std::span<const SoftmaxTask> tasks, const AttentionRows& rows,
                           std::vector<LolaScratch>& scratch, std::vector<float>& partials);

}  // namespace lola

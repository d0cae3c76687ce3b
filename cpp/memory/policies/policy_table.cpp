#include "memory/policies/policy_table.h"

#include <string>

#include "base/error.h"
#include "base/text.h"

namespace lola {

const CachePolicy& find_policy(std::string_view name) {
  std::string wanted;
  for (const CachePolicy& policy : kCachePolicies) {
    if (name == policy.name) return policy;
    wanted += (wanted.empty() ? "" : ", ") + std::string(policy.name);
  }
  throw UsageError(message("policy: found ", quote(name), ", wanted one of ", wanted));
}

}  // namespace lola

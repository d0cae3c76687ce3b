// How many threads computing at full speed this process may run.
#pragma once

#include <filesystem>

namespace lola {

// Physical cores that the affinity mask allows, no more than the cgroup's CPU quota pays for; at
// least 1.
int default_thread_count();

// Processors that the quotas of a process's cgroups allow, versions 1 and 2; a very large number
// where there is none. `list` is /proc/self/cgroup, `mount` is /sys/fs/cgroup; parameters for
// tests.
double cgroup_cpu_quota(const std::filesystem::path& list, const std::filesystem::path& mount);

}  // namespace lola

#include "base/cpu_count.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "base/error.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lola {
namespace {

constexpr double kNoQuota = std::numeric_limits<double>::max();

// Numbers of the form "quota period", in microseconds; "max" and -1 are no quota.
double quota_of(double quota, double period) {
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

double read_number(const std::filesystem::path& file) {
  std::ifstream in(file);
  double number = -1;
  return in >> number ? number : -1;
}

double quota_in_folder(const std::filesystem::path& folder) {
  std::ifstream in(folder / "cpu.max");
  double quota = -1, period = -1;
  if (in >> quota >> period) return quota_of(quota, period);
  return quota_of(read_number(folder / "cpu.cfs_quota_us"),
                  read_number(folder / "cpu.cfs_period_us"));
}

bool lists(std::string_view names, std::string_view wanted) {
  while (!names.empty()) {
    const size_t end = std::min(names.find(','), names.size());
    if (names.substr(0, end) == wanted) return true;
    names.remove_prefix(std::min(end + 1, names.size()));
  }
  return false;
}

#if defined(__linux__)
int read_int(const std::string& path) {
  std::ifstream file(path);
  int value = -1;
  file >> value;
  return value;
}

// Hyper-threads of one core share (package, core id), so distinct pairs are physical cores.
int physical_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return 0;
  std::set<std::pair<int, int>> cores;
  int logical = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    ++logical;
    const std::string topology = message("/sys/devices/system/cpu/cpu", cpu, "/topology/");
    const int core = read_int(topology + "core_id");
    if (core >= 0) cores.emplace(read_int(topology + "physical_package_id"), core);
  }
  return cores.empty() ? logical : static_cast<int>(cores.size());
}
#elif defined(__APPLE__)
int physical_cores() {
  int count = 0;
  size_t size = sizeof(count);
  if (sysctlbyname("hw.perflevel0.physicalcpu", &count, &size, nullptr, 0) == 0) return count;
  return sysctlbyname("hw.physicalcpu", &count, &size, nullptr, 0) == 0 ? count : 0;
}
#else
int physical_cores() { return static_cast<int>(std::thread::hardware_concurrency()); }
#endif

}  // namespace

double cgroup_cpu_quota(const std::filesystem::path& list, const std::filesystem::path& mount) {
  double least = kNoQuota;
  std::ifstream lines(list);
  // Lines are "number:controllers:/path"; version 2 has no controllers, version 1 mounts each.
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !lists(controllers, "cpu")) continue;
    const std::filesystem::path root = controllers.empty() ? mount : mount / "cpu";
    std::filesystem::path folder = root;
    least = std::min(least, quota_in_folder(folder));
    for (const auto& part : std::filesystem::path(line.substr(second + 1)).relative_path()) {
      least = std::min(least, quota_in_folder(folder /= part));
    }
  }
  return least;
}

int default_thread_count() {
  const double quota = cgroup_cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup");
  // Down: a thread more than the quota pays for makes all of them stop until the next period.
  return static_cast<int>(std::clamp(std::min<double>(physical_cores(), quota), 1.0, 1024.0));
}

}  // namespace lola

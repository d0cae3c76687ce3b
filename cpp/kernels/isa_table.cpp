// The one list of instruction sets, best first. A row's needs are those of the processor and of the
// operating system, which has to save the wide registers of a thread that it suspends.
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "kernels/kernel_sets.h"

#if defined(__x86_64__) || defined(_M_X64)
#define LOLA_X86_64
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define LOLA_ARM64
#endif

namespace lola {
namespace {

bool always() { return true; }

#if defined(LOLA_X86_64)

struct CpuidRegisters {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero when the processor does not know the leaf.
CpuidRegisters cpuid(uint32_t leaf) {
  CpuidRegisters out;
#if defined(_MSC_VER)
  int registers[4];
  __cpuid(registers, 0);
  if (static_cast<uint32_t>(registers[0]) < leaf) return out;
  __cpuidex(registers, static_cast<int>(leaf), 0);
  out.eax = static_cast<uint32_t>(registers[0]);
  out.ebx = static_cast<uint32_t>(registers[1]);
  out.ecx = static_cast<uint32_t>(registers[2]);
  out.edx = static_cast<uint32_t>(registers[3]);
#else
  __get_cpuid_count(leaf, 0, &out.eax, &out.ebx, &out.ecx, &out.edx);
#endif
  return out;
}

// The register sets that the operating system saves. Only where OSXSAVE is set.
uint64_t saved_registers() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

constexpr uint32_t bit(int index) { return uint32_t{1} << index; }
constexpr bool has_all(uint64_t found, uint64_t wanted) { return (found & wanted) == wanted; }

bool has_avx2() {
  constexpr uint32_t kFma = bit(12), kOsXsave = bit(27), kAvx = bit(28), kF16c = bit(29);
  constexpr uint32_t kAvx2 = bit(5);
  constexpr uint64_t kXmmAndYmm = 0x6;
  return has_all(cpuid(1).ecx, kFma | kOsXsave | kAvx | kF16c) && has_all(cpuid(7).ebx, kAvx2) &&
         has_all(saved_registers(), kXmmAndYmm);
}

bool has_avx512() {
  constexpr uint32_t kF = bit(16), kDq = bit(17), kBw = bit(30), kVl = bit(31);
  constexpr uint32_t kVnni = bit(11);
  constexpr uint64_t kMasksAndZmm = 0xE0;
  return has_avx2() && has_all(cpuid(7).ebx, kF | kDq | kBw | kVl) &&
         has_all(cpuid(7).ecx, kVnni) && has_all(saved_registers(), kMasksAndZmm);
}

#endif

struct IsaRow {
  const Kernels* kernels;
  bool (*supported)();
};

constexpr IsaRow kIsaTable[] = {
#if defined(LOLA_X86_64)
    {&kAvx512Kernels, has_avx512},
    {&kAvx2Kernels, has_avx2},
#elif defined(LOLA_ARM64)
    {&kNeonKernels, always},
#endif
    {&kScalarKernels, always},
};

const std::vector<const char*>& available_names() {
  static const std::vector<const char*> names = [] {
    std::vector<const char*> found;
    for (const IsaRow& row : kIsaTable) {
      if (row.supported()) found.push_back(row.kernels->name);
    }
    found.push_back(nullptr);
    return found;
  }();
  return names;
}

}  // namespace

const char* const* available_isas() { return available_names().data(); }

const Kernels& kernels_by_name(const char* name) {
  std::string available;
  for (const IsaRow& row : kIsaTable) {
    if (!row.supported()) continue;
    if (std::string_view(row.kernels->name) == name) return *row.kernels;
    available += available.empty() ? "" : ", ";
    available += row.kernels->name;
  }
  throw UnsupportedError(
      message("instruction set '", name, "' is not available here; available: ", available));
}

const Kernels& select_kernels() {
  const char* forced = std::getenv("LOLA_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') return kernels_by_name(available_isas()[0]);
  try {
    return kernels_by_name(forced);
  } catch (const UnsupportedError& error) {
    throw UnsupportedError(message("LOLA_FORCE_ISA: ", error.what()));
  }
}

}  // namespace lola

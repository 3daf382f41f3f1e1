#include "fd/cublaslt.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <sstream>

#include "fd/workspace.h"

namespace fd::lt {
namespace {

constexpr size_t kWorkspace = 32 << 20;  // what its documentation advises from sm_90 on
constexpr size_t kMaxPlans = 4096;
constexpr int64_t kAlignment = 256;

std::mutex mutex;
std::string files;  // separated by colons; guarded by `mutex`

void* open_library() {
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"})
    if (void* loaded = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) return loaded;
  std::istringstream list(files);
  for (std::string file; std::getline(list, file, ':');)
    if (void* found = dlopen(file.c_str(), RTLD_NOW)) return found;
  return dlopen("libcublasLt.so.13", RTLD_NOW);
}

template <typename F>
bool bind(void* library, const char* name, F** to) {
  *to = reinterpret_cast<F*>(dlsym(library, name));
  return *to != nullptr;
}

const Api* open_api() {
  static Api found;
  const std::lock_guard<std::mutex> lock(mutex);
  void* library = open_library();
  const bool whole = library != nullptr && bind(library, "cublasLtCreate", &found.create) &&
                     bind(library, "cublasLtMatmulDescCreate", &found.desc_create) &&
                     bind(library, "cublasLtMatmulDescDestroy", &found.desc_destroy) &&
                     bind(library, "cublasLtMatmulDescSetAttribute", &found.desc_set) &&
                     bind(library, "cublasLtMatrixLayoutCreate", &found.layout_create) &&
                     bind(library, "cublasLtMatrixLayoutDestroy", &found.layout_destroy) &&
                     bind(library, "cublasLtMatmulPreferenceCreate", &found.preference_create) &&
                     bind(library, "cublasLtMatmulPreferenceDestroy", &found.preference_destroy) &&
                     bind(library, "cublasLtMatmulPreferenceSetAttribute", &found.preference_set) &&
                     bind(library, "cublasLtMatmulAlgoGetHeuristic", &found.heuristic) &&
                     bind(library, "cublasLtMatmul", &found.matmul);
  return whole ? &found : nullptr;
}

void check(const char* op, int status, const char* call) {
  if (status != 0) fail("RuntimeError", op, ": cublasLt ", call, ": status ", status);
}

// The largest power of two up to 256 that divides an address.
uint32_t alignment(const void* p) {
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p)) | kAlignment;
  return static_cast<uint32_t>(address & -address);
}

using Key = std::tuple<int, bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int,
                       int, uint32_t, uint32_t, uint32_t, bool, int>;

// Descriptions and the algorithm of one product; freed with the thread.
struct Plan {
  Desc desc = nullptr;
  Layout w = nullptr, x = nullptr, out = nullptr;
  Heuristic chosen{};
  bool usable = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    const Api* lt = api();
    if (desc != nullptr) lt->desc_destroy(desc);
    for (Layout layout : {w, x, out})
      if (layout != nullptr) lt->layout_destroy(layout);
  }
};

Handle handle_on(const Launch& on) {
  static std::map<int, Handle> handles;
  const std::lock_guard<std::mutex> lock(mutex);
  Handle& handle = handles[on.device];
  if (handle == nullptr) check(on.op, api()->create(&handle), "create");
  return handle;
}

void set_scales(const Launch& on, const Product& p, Desc desc) {
  if (p.x_scales == nullptr) return;
  const Api& lt = *api();
  check(on.op, lt.desc_set(desc, kScaleOfA, &p.w_scales, sizeof(void*)), "scale");
  check(on.op, lt.desc_set(desc, kScaleOfB, &p.x_scales, sizeof(void*)), "scale");
}

// Whether the library knows such scales: vectors from 12.9 on.
bool describe_scales(const Launch& on, const Product& p, Desc desc) {
  set_scales(on, p, desc);
  if (!p.by_row) return true;
  const Api& lt = *api();
  return lt.desc_set(desc, kScaleModeOfA, &kScaleVector, sizeof(int)) == 0 &&
         lt.desc_set(desc, kScaleModeOfB, &kScaleVector, sizeof(int)) == 0;
}

void describe(const Launch& on, const Product& p, Plan* plan) {
  const Api& lt = *api();
  check(on.op, lt.desc_create(&plan->desc, p.compute, p.scale_type), "description");
  check(on.op, lt.desc_set(plan->desc, kTransA, &kTranspose, sizeof(int)), "transpose");
  if (p.bias != nullptr) {
    check(on.op, lt.desc_set(plan->desc, kEpilogue, &kEpilogueBias, sizeof(int)), "epilogue");
    check(on.op, lt.desc_set(plan->desc, kBiasType, &p.out_type, sizeof(int)), "bias type");
    check(on.op, lt.desc_set(plan->desc, kBiasPointer, &p.bias, sizeof(void*)), "bias");
  }
  const auto depth = static_cast<uint64_t>(p.depth), rows = static_cast<uint64_t>(p.rows),
             columns = static_cast<uint64_t>(p.columns);
  check(on.op, lt.layout_create(&plan->w, p.in_type, depth, columns, p.w_step), "layout");
  check(on.op, lt.layout_create(&plan->x, p.in_type, depth, rows, p.x_step), "layout");
  check(on.op, lt.layout_create(&plan->out, p.out_type, columns, rows, p.out_step), "layout");
}

void choose(const Launch& on, const Product& p, size_t workspace, Plan* plan) {
  const Api& lt = *api();
  Preference preference = nullptr;
  check(on.op, lt.preference_create(&preference), "preference");
  int status = lt.preference_set(preference, kMaxWorkspace, &workspace, sizeof(workspace));
  if (status == 0)
    status = lt.preference_set(preference, kReductions, &kWideReductions, sizeof(uint32_t));
  const void* operands[] = {p.w, p.x, p.out, p.out};
  for (int i = 0; i < 4 && status == 0; ++i) {
    const uint32_t bytes = alignment(operands[i]);
    status = lt.preference_set(preference, kMinAlignmentA + i, &bytes, sizeof(bytes));
  }
  int found = 0;
  if (status == 0)
    status = lt.heuristic(handle_on(on), plan->desc, plan->w, plan->x, plan->out, plan->out,
                          preference, 1, &plan->chosen, &found);
  lt.preference_destroy(preference);
  plan->usable = status == 0 && found > 0;
}

// Null while a graph is captured before any other call: algorithms that need none serve then.
void* scratch_of(const Launch& on) {
  static std::atomic<bool> held[kMaxDevices];
  if (!held[on.device] && capturing(on)) return nullptr;
  void* found = workspace(on, Scratch::kLinear, kWorkspace);
  held[on.device] = true;
  return found;
}

// Kept per thread: a description's bias changes from call to call.
Plan& plan_of(const Launch& on, const Product& p, size_t workspace) {
  thread_local std::map<Key, Plan> plans;
  const int scales = p.x_scales == nullptr ? 0 : p.by_row ? 2 : 1;
  const Key key{on.device, workspace > 0,  p.rows,         p.columns,        p.depth,
                p.x_step,  p.w_step,       p.out_step,     p.in_type,        p.out_type,
                p.compute, alignment(p.x), alignment(p.w), alignment(p.out), p.bias != nullptr,
                scales};
  if (plans.size() > kMaxPlans) plans.clear();
  const auto [at, fresh] = plans.try_emplace(key);
  if (fresh) {
    describe(on, p, &at->second);
    if (describe_scales(on, p, at->second.desc)) choose(on, p, workspace, &at->second);
  }
  return at->second;
}

}  // namespace

void search(const std::string& list) {
  const std::lock_guard<std::mutex> lock(mutex);
  files = list;
}

const Api* api() {
  static const Api* const found = open_api();
  return found;
}

bool multiply(const Launch& on, const Product& p) {
  if (api() == nullptr) return false;
  void* scratch = scratch_of(on);
  Plan& plan = plan_of(on, p, scratch != nullptr ? kWorkspace : 0);
  if (!plan.usable) return false;
  const Api& lt = *api();
  if (p.bias != nullptr)
    check(on.op, lt.desc_set(plan.desc, kBiasPointer, &p.bias, sizeof(void*)), "bias");
  set_scales(on, p, plan.desc);
  const float one = 1, none = 0;
  const int32_t int_one = 1, int_none = 0;
  const bool integers = p.scale_type == kR32I;
  const void *alpha = integers ? static_cast<const void*>(&int_one) : &one,
             *beta = integers ? static_cast<const void*>(&int_none) : &none;
  check(on.op,
        lt.matmul(handle_on(on), plan.desc, alpha, p.w, plan.w, p.x, plan.x, beta, p.out, plan.out,
                  p.out, plan.out, &plan.chosen.algo, scratch, plan.chosen.workspace, on.stream),
        "matmul");
  if (blocking()) cuda_check(cudaStreamSynchronize(on.stream), on.op, "kernel");
  return true;
}

}  // namespace fd::lt

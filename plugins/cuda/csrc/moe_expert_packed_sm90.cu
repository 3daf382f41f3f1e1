// moe_expert_int8 and moe_expert_int4 for many rows an expert on sm_90a; also as an export of its
// own, for tests and benchmarks: moe_expert_packed_sm90, arguments as theirs.
#include "fd/expert_packed.h"
#include "fd/expert_packed_sm90.cuh"
#include "fd/tensor_map.h"

namespace fd {

template <typename Job>
int64_t wide_packed_shared(const ExpertRows& rows) {
  return int64_t{sizeof(WidePackedShared<Job>)} + 1024 +
         most_groups(rows, kWideRows) * int64_t{sizeof(RowGroup)};
}

template <typename Job>
void wide_packed_product(const Launch& on, const Job& job) {
  constexpr bool kBfloat = std::is_same_v<typename Job::T, bf16>;
  const WideMaps maps{
      stack_map(on.op, kBfloat, job.all.x, job.all.depth, job.rows.rows, 1, kWideRows), {}};
  const auto shared = static_cast<size_t>(wide_packed_shared<Job>(job.rows));
  allow_shared_once<moe_packed_sm90_tiles<Job>>(on, shared);
  run_overlapped(on, moe_packed_sm90_tiles<Job>, dim3(static_cast<unsigned>(on.processors())),
                 dim3(kUnpackThreads), shared, job, maps);
}

template <typename T, typename Weights>
bool wide_packed_both(const Launch& on, const PackedCall& call, const Weights& up,
                      const Weights& down) {
  using First = WidePacked<Weights, T, true>;
  using Second = WidePacked<Weights, T, false>;
  const ExpertRows rows = call.rows();
  const int64_t most = on.facts().block_shared, tiles = most_groups(rows, kWideRows);
  if (wide_packed_shared<First>(rows) > most || wide_packed_shared<Second>(rows) > most)
    return false;
  if (tiles * (call.inner + call.hidden()) >= INT32_MAX) return false;
  T* inner = expert_inner<T>(on, call);
  const int room = static_cast<int>(tiles);
  const PackedExperts<Weights, T> first{rows,  call.x.data<T>(), call.hidden(), up,
                                        inner, kWideRows,        room,          false};
  const PackedExperts<Weights, T> second{rows,      inner, call.inner, down, call.out.data<T>(),
                                         kWideRows, room,  true};
  wide_packed_product(on, First{first, rows, call.inner, inner});
  wide_packed_product(on, Second{second, rows, call.hidden(), call.out.data<T>()});
  return true;
}

bool wide_packed(const Launch& on, const PackedCall& call, int group) {
  if (on.sm() != 90) return false;
  bool done = false;
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    const auto both = [&](const auto& up, const auto& down) {
      done = wide_packed_both<T>(on, call, up, down);
    };
    group < 0 ? with_int8_stacks<T>(call, both) : with_int4_stacks<T>(call, group, both);
  };
  is<bf16>(call.x) ? go(bf16{}) : go(f16{});
  return done;
}

void moe_expert_packed_sm90(Tensor x, Tensor ends, Tensor gate_up_codes, Tensor gate_up_scales,
                            Tensor down_codes, Tensor down_scales, int64_t intermediate,
                            Tensor out) {
  const char* op = "moe_expert_packed_sm90";
  const PackedCall call{
      op, x, ends, gate_up_codes, gate_up_scales, down_codes, down_scales, intermediate, out};
  int group = -1;
  if (is<int8_t>(gate_up_codes))
    check_int8_call(call);
  else
    group = check_int4_call(call);
  if (out.numel() == 0) return;
  if (!wide_packed(launch_on(op, x), call, group))
    fail("ValueError", op, ": not for these sizes or this device");
}
FD_EXPORT(moe_expert_packed_sm90)

}  // namespace fd

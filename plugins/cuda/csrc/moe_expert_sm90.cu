// moe_expert_ffn for many 16-bit rows an expert on sm_90a; also as an export of its own, for tests
// and benchmarks: moe_expert_sm90(x, ends, up_gate, down, bias, out), arguments as the op's.
#include "fd/expert_sm90.cuh"
#include "fd/expert_sm90.h"
#include "fd/packed_linear.h"
#include "fd/tensor_map.h"
#include "fd/workspace.h"

namespace fd {

inline int64_t wide_shared(const ExpertRows& rows) {
  return int64_t{sizeof(WideShared<4>)} + 1024 +
         most_groups(rows, kWideRows) * int64_t{sizeof(RowGroup)};
}

// Sizes in 32 bits, and a list that fits beside the tiles.
bool wide_experts_fit(const Launch& on, const WideCall& call) {
  const ExpertRows& rows = call.rows;
  return on.sm() == 90 && !rows.counts && rows.rows < INT32_MAX &&
         wide_shared(rows) <= on.facts().block_shared &&
         most_groups(rows, kWideRows) * (call.up.size(2) + call.x.size(1)) < INT32_MAX;
}

template <typename T, bool Gated>
void wide_product_of(const Launch& on, const WideCall& call, const void* x, const Tensor& w,
                     const void* bias, void* out) {
  const bool bfloat = std::is_same_v<T, bf16>;
  const int64_t depth = w.size(1), columns = w.size(2);
  const WideMaps maps{stack_map(on.op, bfloat, x, depth, call.rows.rows, 1, kWideRows),
                      stack_map(on.op, bfloat, w.data<void>(), columns, depth, w.size(0), 64)};
  using Job = WideExperts<T, Gated>;
  const Job job{call.rows,
                static_cast<const T*>(bias),
                columns,
                static_cast<int>(depth),
                static_cast<int>(most_groups(call.rows, kWideRows)),
                static_cast<T*>(out)};
  const auto shared = static_cast<size_t>(wide_shared(call.rows));
  allow_shared_once<moe_expert_sm90_tiles<Job>>(on, shared);
  run_overlapped(on, moe_expert_sm90_tiles<Job>, dim3(static_cast<unsigned>(on.processors())),
                 dim3(kWideThreads), shared, job, maps);
}

void wide_experts(const Launch& on, const WideCall& call) {
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    wide_product_of<T, true>(on, call, call.x.data<void>(), call.up, call.bias, call.memory);
    wide_product_of<T, false>(on, call, call.memory, call.down, nullptr, call.out.data<void>());
  };
  is<bf16>(call.x) ? go(bf16{}) : go(f16{});
}

void moe_expert_sm90(Tensor x, Tensor ends, Tensor up_gate, Tensor down, OptTensor bias,
                     Tensor out) {
  const char* op = "moe_expert_sm90";
  check_packed_input(op, x);
  Check{op, "x", x}.rank(2).contiguous();
  const int64_t experts = up_gate.size(0), hidden = x.size(1), inner = up_gate.size(2) / 2;
  Check{op, "up_gate", up_gate}.rank(3).dim(1, hidden).same_dtype(x).contiguous();
  Check{op, "down", down}.rank(3).dim(0, experts).dim(1, inner).dim(2, hidden);
  Check{op, "down", down}.same_dtype(x).contiguous();
  if (bias) Check{op, "bias", bias}.numel(experts * 2 * inner).same_dtype(x).contiguous();
  Check{op, "ends", ends}.dtype<int64_t>("int64").rank(1).dim(0, experts).contiguous();
  Check{op, "out", out}.same_shape(x).same_dtype(x).contiguous();
  same_device(op, x, {ends, up_gate, down, bias, out});
  if (inner % 8 != 0 || up_gate.size(2) != 2 * inner || inner == 0)
    fail("ValueError", op, ".up_gate: want 2 * n columns, n a multiple of 8, have ",
         shape_text(up_gate));
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  const ExpertRows rows{ends.data<int64_t>(), static_cast<int>(experts), x.size(0), 0, false};
  void* memory = workspace(on, Scratch::kMoeInner, static_cast<size_t>(rows.rows * inner * 2));
  const WideCall call{rows, x, up_gate, down, bias ? bias.data<void>() : nullptr, memory, out};
  if (!wide_experts_fit(on, call)) fail("ValueError", op, ": not for these sizes or this device");
  wide_experts(on, call);
}
FD_EXPORT(moe_expert_sm90)

}  // namespace fd

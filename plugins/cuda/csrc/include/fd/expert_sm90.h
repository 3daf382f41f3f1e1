// Experts of many 16-bit rows on sm_90a (moe_expert_sm90.cu), for moe_expert_ffn.cu.
#pragma once
#include "fd/cuda.h"
#include "fd/expert_tiles.cuh"

namespace fd {

// Both products of a call: x [rows, hidden], up [experts, hidden, 2 * inner] and its bias [experts,
// 2 * inner] or null, down [experts, inner, hidden], out [rows, hidden]; `memory`: room for [rows,
// inner].
struct WideCall {
  ExpertRows rows;
  Tensor x, up, down;
  const void* bias;
  void* memory;
  Tensor out;
};

// Weak: a build without this architecture has no such file. The first says what the second takes.
bool wide_experts_fit(const Launch& on, const WideCall& call) __attribute__((weak));
void wide_experts(const Launch& on, const WideCall& call) __attribute__((weak));

}  // namespace fd

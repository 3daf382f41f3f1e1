// Host side that the split kernels share: how a launch is shaped, how sequences are cut.
#pragma once
#include "fd/attention.h"
#include "fd/attention_merge.cuh"

namespace fd {

constexpr int kSplitSequences = 4096;
// Keys of the smallest chunk: where sequences alone do not keep the blocks busy, and where they do.
constexpr int kSplitChunk = 128, kSplitBusyChunk = 512;
// What the end of an item costs: this share of the keys of a long sequence.
constexpr double kSplitEnd = 0.02;

// How a launch is shaped: pipeline stages, blocks per multiprocessor; keys of the smallest chunk
// and chunks of a sequence that suffice, 0 for what `split_work` thinks best.
struct SplitShape {
  int stages, blocks_per_sm, chunk, wanted;
};

inline int split_dim(int dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }
inline int64_t split_rows(const AttentionCall& call) {
  return call.group() * std::max<int64_t>(call.max_queries, 1);
}
inline int split_columns(const AttentionCall& call) {
  return split_rows(call) > 8 && split_dim(call.args.dim) < 256 ? 2 : 1;
}

// Shared memory of a block behind its stages: sums and the plan.
inline size_t split_fixed(const AttentionCall& call) {
  const int dim = split_dim(call.args.dim), rows = 8 * split_columns(call);
  const size_t sums = 4 * rows * std::max(dim + 4, kSplitWeights) + 8 * kSplitWarps * rows;
  const size_t plan = (sizeof(SplitSequence) + sizeof(int)) * (call.args.sequences + 1);
  return sums + 16 + plan;
}

// Two blocks a multiprocessor with three stages each, measured best; less where memory is short.
// `bytes`: of a block with so many stages.
template <typename Bytes>
inline SplitShape split_shape_of(const Launch& on, Bytes bytes) {
  const size_t most = on.facts().block_shared, all = on.facts().all_shared;
  const auto fits = [&](int stages, int blocks) {
    return bytes(stages) <= most && blocks * (bytes(stages) + 1024) <= all;
  };
  const int blocks = fits(2, 2) ? 2 : 1;
  int stages = blocks == 2 ? 3 : 4;
  while (stages > 1 && !fits(stages, blocks)) --stages;
  return {stages, blocks, 0, 0};
}

// Chunks per sequence that keep the blocks evenly busy, were all of one length: few rounds over the
// blocks, the last one full. `units`: sequences times key heads.
inline int split_wanted(int64_t units, int64_t blocks) {
  int best = 1;
  double least = 1e30;
  for (int n = 1; n <= kSplitMaxChunks; ++n) {
    const double rounds = static_cast<double>((units * n + blocks - 1) / blocks);
    const double time = rounds * (1.0 / n + kSplitEnd);
    if (time < least * 0.999) best = n, least = time;
  }
  return best;
}

// How the split kernel cuts a step's sequences: keys of the smallest chunk, chunks that suffice.
struct SplitCut {
  int chunk, wanted;
};
// Every layer of a step asks the same.
inline SplitCut split_cut_over(int64_t units, int64_t blocks) {
  thread_local int64_t last_units = -1, last_blocks = -1;
  thread_local SplitCut last{};
  if (units != last_units || blocks != last_blocks)
    last = {units >= blocks ? kSplitBusyChunk : kSplitChunk, split_wanted(units, blocks)};
  last_units = units, last_blocks = blocks;
  return last;
}
SplitCut split_cut(const Launch& on, const AttentionCall& call);  // paged_attention_split.cu

inline SplitWork split_work(const Launch& on, const AttentionCall& call, const SplitShape& shape,
                            int max_rows) {
  SplitWork w{};
  const int64_t blocks = on.facts().processors * shape.blocks_per_sm;
  const int dim = split_dim(call.args.dim), rows = 8 * split_columns(call);
  w.rows = static_cast<int>(std::min<int64_t>(rows, split_rows(call))), w.max_rows = max_rows;
  w.slots = static_cast<int>(kAttentionScratch / (size_t(w.rows) * (dim + 2) * sizeof(float)));
  const int64_t units = int64_t{call.args.sequences} * call.args.kv_heads;
  const SplitCut cut = split_cut_over(units, blocks);
  w.chunk = shape.chunk > 0 ? shape.chunk : cut.chunk;
  w.wanted = shape.wanted > 0 ? shape.wanted : cut.wanted;
  const AttentionScratch space = attention_scratch(on);
  w.partial = space.partial, w.counters = space.counters;
  w.stats = w.partial + int64_t{w.slots} * w.rows * dim;
  return w;
}

}  // namespace fd

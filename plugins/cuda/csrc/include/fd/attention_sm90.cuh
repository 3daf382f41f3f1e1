// The sm_90a kernel's (paged_attention_sm90.cu) shared memory, and the warp that copies to it.
#pragma once
#include "fd/attention_sm90_plan.cuh"
#include "fd/hopper.cuh"

namespace fd {

// Stages of queries, keys and values: values are waited for longest, since both teams hold theirs
// until they have been multiplied.
constexpr int kSm90Stages = 2, kSm90ValueStages = 3;
constexpr int kSm90Teams = 2, kSm90Threads = 128 * (kSm90Teams + 1);  // warpgroups
constexpr int kSm90Warps = 4 * kSm90Teams;                            // that multiply
// Registers of a thread that copies or looks, and of one that multiplies: no more than the block
// starts with, the multiple of 8 that all its threads can have.
constexpr int kSm90CopyRegisters = 56, kSm90ProductRegisters = 224;
static_assert(kSm90CopyRegisters + kSm90Teams * kSm90ProductRegisters <=
              (kSm90Teams + 1) * (65536 / kSm90Threads / 8 * 8));
constexpr int kSm90Watchers = 3;  // warps beside the copying one (attention_sm90_watch.cuh)

// Where the copy engine finds things. q: [tokens, heads, dim]; key, value: [blocks, heads, slots,
// dim].
struct Sm90Maps {
  CUtensorMap q, key, value;
};

// Shared memory; tiles are [dim / 64] columns of [rows][64].
template <int D>
struct Sm90Shared {
  char q[kSm90Stages][kSm90Rows * D * 2];
  char key[kSm90Stages][kSm90Keys * D * 2], value[kSm90ValueStages][kSm90Keys * D * 2];
  Sm90Item item[kSm90Stages];
  int size, total, parted;  // of the list; its words lie behind
  uint64_t q_full[kSm90Stages], q_empty[kSm90Stages];
  uint64_t key_full[kSm90Stages], key_empty[kSm90Stages];
  uint64_t value_full[kSm90ValueStages], value_empty[kSm90ValueStages];
  uint64_t value_watched[kSm90ValueStages];  // of tiles whose rows see different keys
  uint8_t wild[kSm90ValueStages][4];         // what each watcher found in the tile; the last is 0
};

template <int D>
__device__ __forceinline__ Sm90List sm90_list_of(const Sm90Shared<D>& sh) {
  return {reinterpret_cast<const int*>(&sh + 1), sh.size, sh.total, sh.parted};
}

// A stage's number and parity.
template <int Stages>
struct Sm90Turn {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == Stages) stage = 0, phase ^= 1;
  }
};

template <int D>
__device__ __forceinline__ void sm90_begin(Sm90Shared<D>& sh) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSm90Stages; ++s) {
      barrier_init(&sh.q_full[s], 1), barrier_init(&sh.q_empty[s], kSm90Warps + kSm90Watchers);
      barrier_init(&sh.key_full[s], 1), barrier_init(&sh.key_empty[s], kSm90Warps);
    }
    for (int s = 0; s < kSm90ValueStages; ++s) {
      barrier_init(&sh.value_full[s], 1);
      barrier_init(&sh.value_empty[s], kSm90Warps + kSm90Watchers);
      barrier_init(&sh.value_watched[s], kSm90Watchers), sh.wild[s][kSm90Watchers] = 0;
    }
    barrier_init_done();
  }
  __syncthreads();
}

// Writes down the list; by all threads, ends with a barrier.
template <int D>
__device__ __forceinline__ void sm90_plan(const AttentionArgs& a, const Sm90Shape& shape,
                                          const Sm90Scratch& scratch, Sm90Shared<D>& sh) {
  auto& choice = *reinterpret_cast<Sm90Choice*>(sh.q[0]);
  int* prefix = reinterpret_cast<int*>(&sh + 1);
  const Sm90List list = sm90_list<kSm90Threads>(a, shape, scratch, prefix, choice);
  if (threadIdx.x == 0) sh.size = list.size, sh.total = list.total, sh.parted = list.parted;
  stores_for_async();
  __syncthreads();
}

// The next item of the list: blocks take them as they come, their first one too, so that whatever a
// block waits for has been taken by one that runs. The copying warp's first lane knows which.
__device__ __forceinline__ int sm90_take(int* taken) {
  return threadIdx.x == 0 ? atomicAdd(taken, 1) : 0;
}

// Every block takes once in vain; the last one leaves the counter at zero.
__device__ __forceinline__ bool sm90_ended(int* taken, int index, int total) {
  if (index == total + static_cast<int>(gridDim.x) - 1) *taken = 0;
  return index >= total;
}

// Where a lane's box of a tile of keys lies; of values too, which are copied behind the keys of the
// next tile: these are needed first.
struct Sm90Place {
  int head, block, slot;
};

// The copying warp, a lane a box: 64 columns of as many rows as a page has together. Items are
// handed on with their queries.
template <int D>
struct Sm90Copies {
  const AttentionArgs& a;
  const Sm90Maps& maps;
  const Sm90Shape& shape;
  Sm90Shared<D>& sh;
  const int lane, row, column;  // of the lane's box; row: kSm90Keys and more where it has none
  Sm90Turn<kSm90Stages> queries, keys;
  Sm90Turn<kSm90ValueStages> values;

  __device__ __forceinline__ Sm90Place place(const Sm90Item& it, int key) const {
    const int at = key + row, page = at / a.block_size;
    return {it.head, static_cast<int>(attention_block(a, it.sequence, page)),
            at - page * a.block_size};
  }

  __device__ __forceinline__ void copy(const CUtensorMap* map, const Sm90Place& from, char* to,
                                       uint64_t* bar) {
    if (lane == 0) barrier_expect(bar, kSm90Keys * D * 2);
    __syncwarp();
    if (row < kSm90Keys)
      copy_box(to + (column * kSm90Keys + row) * 128, map, bar, column * 64, from.slot, from.head,
               from.block);
  }

  __device__ __forceinline__ void copy_queries(const Sm90Item& it) {
    const int n = queries.stage, token = it.token + it.first_row / shape.group;
    barrier_wait(&sh.q_empty[n], queries.phase ^ 1);
    if (lane == 0) {
      sh.item[n] = it;
      barrier_expect(&sh.q_full[n], shape.tokens_per_tile * shape.group * D * 2);
    }
    __syncwarp();
    if (lane < D / 64)
      copy_box(sh.q[n] + lane * kSm90Rows * 128, &maps.q, &sh.q_full[n], lane * 64, 0, it.head,
               token);
    queries.next();
  }

  __device__ __forceinline__ void copy_keys(const Sm90Place& from) {
    const int s = keys.stage;
    barrier_wait(&sh.key_empty[s], keys.phase ^ 1);
    copy(&maps.key, from, sh.key[s], &sh.key_full[s]);
    keys.next();
  }

  __device__ __forceinline__ void copy_values(const Sm90Place& from) {
    const int s = values.stage;
    barrier_wait(&sh.value_empty[s], values.phase ^ 1);
    copy(&maps.value, from, sh.value[s], &sh.value_full[s]);
    values.next();
  }

  __device__ __forceinline__ void end() {
    barrier_wait(&sh.q_empty[queries.stage], queries.phase ^ 1);
    if (lane > 0) return;
    sh.item[queries.stage].rows = 0;
    barrier_arrive(&sh.q_full[queries.stage]);
  }
};

// The item taken, or the next one with keys; false at the end of the list.
__device__ __forceinline__ bool sm90_next(const AttentionArgs& a, const Sm90Shape& shape,
                                          const Sm90List& list, int* taken, int take,
                                          Sm90Item& it) {
  int index = __shfl_sync(~0u, take, 0);
  while (!sm90_ended(taken, index, list.total)) {
    it = sm90_item(a, shape, list, index);
    if (it.begin < it.end) return true;
    index = __shfl_sync(~0u, sm90_take(taken), 0);
  }
  return false;
}

// `take`: the block's first item.
template <int D>
__device__ __forceinline__ void sm90_produce(const AttentionArgs& a, const Sm90Maps& maps,
                                             const Sm90Shape& shape, int* taken, int take,
                                             Sm90Shared<D>& sh) {
  const Sm90List list = sm90_list_of(sh);
  const int lane = threadIdx.x, boxes = kSm90Keys / shape.box, column = lane / boxes;
  const int row = column < D / 64 ? lane % boxes * shape.box : kSm90Keys;
  Sm90Copies<D> copies{a, maps, shape, sh, lane, row, column, {}, {}, {}};
  Sm90Item next{};
  bool more = sm90_next(a, shape, list, taken, take, next), pending = false;
  Sm90Place left{}, here = copies.place(next, next.first_key());
  while (more) {
    const Sm90Item it = next;
    copies.copy_queries(it);
    take = sm90_take(taken);
    for (int key = it.first_key(); key < it.end; key += kSm90Keys) {
      copies.copy_keys(here);
      const Sm90Place now = here;
      const bool last = key + kSm90Keys >= it.end;
      if (!last) here = copies.place(it, key + kSm90Keys);
      if (pending) copies.copy_values(left);
      left = now, pending = !it.uneven(key);
      if (!pending) copies.copy_values(left);  // watched before they are multiplied
      if (key == it.first_key()) more = sm90_next(a, shape, list, taken, take, next);
      if (last) here = copies.place(next, next.first_key());
    }
  }
  if (pending) copies.copy_values(left);
  copies.end();
}

}  // namespace fd

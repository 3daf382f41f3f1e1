// The list of tiles of the sm_90a kernel (paged_attention_sm90.cu), and how their keys are parted
// where there are fewer tiles than blocks, or a few long ones among many short ones: a turn of a
// conversation over a long cache, the verification of a draft, the tail of a prompt.
//
// How keys are parted, and so the last bits of a row, depends on the queries and lengths of the
// step's sequences, never on what rows hold.
#pragma once
#include "fd/attention_plan.cuh"

namespace fd {

constexpr int kSm90Rows = 128, kSm90Keys = 128;
// Of the words of the list.
constexpr int kSm90ItemBits = 21, kSm90ItemMask = (1 << kSm90ItemBits) - 1;
constexpr int kSm90MostParted = 1 << (31 - kSm90ItemBits);
constexpr int kSm90Candidates = kWarp;  // sizes of parts that are tried
constexpr int kSm90MaxParts = 256;      // of a tile
// Lists of this many tiles a block keep all blocks busy as they are.
constexpr int kSm90Many = 8;
// What a part costs beside its keys, and merging them, in tiles of keys; so many are not parted.
constexpr float kSm90PartCost = 1.f, kSm90MergeCost = 2.f;
constexpr int kSm90Short = 4;

// `box`: slots of one copy; rows of a tile that hold queries: tokens_per_tile * group.
struct Sm90Shape {
  int box, tokens_per_tile, min_rows, group;
};

// Where parts of a tile meet. partial: [slots][kSm90Rows][D] sums, then [slots][kSm90Rows][2] of
// the reference of a row's exponents and its weights' sum. counters: zero before and after.
struct Sm90Scratch {
  float* partial;
  int* counters;
  int slots;
};

// Keys [begin, end), of which all rows of a tile see [all_begin, all_end).
struct Sm90Span {
  int begin, end, all_begin, all_end;

  __device__ __forceinline__ int first_key() const { return begin / kSm90Keys * kSm90Keys; }
  __device__ __forceinline__ bool all_see(int at) const { return at >= all_begin && at < all_end; }
  // Whether some row sees less than the whole tile of keys.
  __device__ __forceinline__ bool uneven(int key) const {
    return key < all_begin || key + kSm90Keys > all_end;
  }
};

// A tile of rows [first_row, first_row + rows) of a sequence, or a part of its keys. No rows: the
// list has ended.
struct Sm90Item : Sm90Span {
  int sequence, head, first_row, rows, position, token;  // of the sequence's query 0
  int part, parts, slot, step;  // which of the tile's parts; their slots: slot + i * step
};

// `size`: tiles of keys of a part; items, and those among them that are parts, over all key heads.
struct Sm90List {
  const int* prefix;
  int size, total, parted;
};

// A sequence's tiles of rows, and tiles of keys that its last rows see; those of all its rows.
struct Sm90Sequence {
  int tiles, longest, work;

  __device__ __forceinline__ int parts(int size) const {
    return size < longest ? (longest + size - 1) / size : 1;
  }
};

// Tiles of keys that rows at positions [first, last] see.
__device__ __forceinline__ int sm90_key_tiles(const AttentionArgs& a, int first, int last) {
  return last / kSm90Keys + 1 - attention_first(a, first) / kSm90Keys;
}

__device__ __forceinline__ Sm90Sequence sm90_sequence(const AttentionArgs& a,
                                                      const Sm90Shape& shape, int s) {
  const int queries = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s], most = shape.tokens_per_tile;
  if (queries * shape.group <= shape.min_rows) return {0, 1, 0};
  const int position = max(a.seq_lens[s] - queries, 0), tiles = (queries + most - 1) / most;
  const int first = sm90_key_tiles(a, position, position + min(most, queries) - 1);
  const int last = sm90_key_tiles(a, position + (tiles - 1) * most, position + queries - 1);
  return {tiles, max(first, last), (tiles * (first + last) + 1) / 2};
}

// Shared memory of the choice.
struct Sm90Choice {
  int work, longest;
  int items[kSm90Candidates], parted[kSm90Candidates], size[kSm90Candidates];
  int parts[kSm90Candidates];
};

// An upper bound of the time until all items are done, whatever their order: rounds of the longest,
// or (Graham 1969) the mean and once more the longest.
__device__ __forceinline__ float sm90_time(int items, float work, float longest) {
  const float blocks = static_cast<float>(gridDim.x);
  return fminf(ceilf(items / blocks) * longest, work / blocks + longest);
}

// Adds up what each candidate would come to, a lane a candidate, a warp a sequence.
template <int Threads>
__device__ __forceinline__ void sm90_try(const AttentionArgs& a, const Sm90Shape& shape, int size,
                                         Sm90Choice& choice) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int items = 0, parted = 0, largest = 0, most = 0;
  for (int s = warp; s < a.sequences; s += Threads / kWarp) {
    const Sm90Sequence one = sm90_sequence(a, shape, s);
    if (one.tiles == 0) continue;
    const int parts = one.parts(size);
    items += one.tiles * parts, parted += parts > 1 ? one.tiles * parts : 0;
    largest = max(largest, (one.longest + parts - 1) / parts), most = max(most, parts);
  }
  if (items == 0) return;
  atomicAdd(&choice.items[lane], items), atomicAdd(&choice.parted[lane], parted);
  atomicMax(&choice.size[lane], largest), atomicMax(&choice.parts[lane], most);
}

// The best of the candidates' sizes, INT_MAX where tiles had better stay whole.
__device__ __forceinline__ int sm90_best(const AttentionArgs& a, const Sm90Scratch& scratch,
                                         int tiles, int size, const Sm90Choice& choice) {
  const int lane = threadIdx.x % kWarp, items = choice.items[lane] * a.kv_heads;
  const float work = static_cast<float>(choice.work) * a.kv_heads;
  const bool fits = choice.parted[lane] * a.kv_heads <= scratch.slots &&
                    choice.parted[lane] < kSm90MostParted && choice.parts[lane] <= kSm90MaxParts;
  const float time =
      sm90_time(items, work + items * kSm90PartCost, choice.size[lane] + kSm90PartCost) +
      kSm90MergeCost;
  float best = fits && choice.parted[lane] > 0 ? time : INFINITY;
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) best = fminf(best, __shfl_xor_sync(~0u, best, d));
  const unsigned winners = __ballot_sync(~0u, fits && time == best);
  const float whole = sm90_time(tiles * a.kv_heads, work, choice.longest);
  if (winners == 0 || best > 0.9f * whole) return INT_MAX;
  return __shfl_sync(~0u, size, __ffs(winners) - 1);
}

// Tiles of keys of a part. By all threads, `work` and `longest`: of the caller's sequences.
template <int Threads>
__device__ __forceinline__ int sm90_part_size(const AttentionArgs& a, const Sm90Shape& shape,
                                              const Sm90Scratch& scratch, int tiles, int work,
                                              int longest, Sm90Choice& choice) {
  if (tiles == 0 || tiles * a.kv_heads >= kSm90Many * static_cast<int>(gridDim.x)) return INT_MAX;
  if (!__syncthreads_or(longest > kSm90Short)) return INT_MAX;
  int* words = reinterpret_cast<int*>(&choice);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(choice) / 4); i += Threads) words[i] = 0;
  __syncthreads();
  if (work > 0) atomicAdd(&choice.work, work), atomicMax(&choice.longest, longest);
  __syncthreads();
  const int blocks = gridDim.x, share = (choice.work * a.kv_heads + blocks - 1) / blocks;
  const int size = max(1, (share * (static_cast<int>(threadIdx.x) % kWarp + 1) + 15) / 16);
  sm90_try<Threads>(a, shape, size, choice);
  __syncthreads();
  const int best = sm90_best(a, scratch, tiles, size, choice);
  __syncthreads();
  return best;
}

// Fills `prefix`: items of the sequences before, by key head, in the lower bits; those among them
// that are parts of a tile above. By all threads; the choice is free again afterwards.
template <int Threads>
__device__ __forceinline__ Sm90List sm90_list(const AttentionArgs& a, const Sm90Shape& shape,
                                              const Sm90Scratch& scratch, int* prefix,
                                              Sm90Choice& choice) {
  int work = 0, longest = 0, size = INT_MAX;
  const auto count = [&](int s) {
    const Sm90Sequence one = sm90_sequence(a, shape, s);
    const int parts = one.parts(size), items = one.tiles * parts;
    if (one.tiles > 0) work += one.work, longest = max(longest, one.longest);
    return parts > 1 ? items << kSm90ItemBits | items : items;
  };
  int total = plan_prefix<Threads>(a.sequences, prefix, count);
  size = sm90_part_size<Threads>(a, shape, scratch, total, work, longest, choice);
  if (size < INT_MAX) total = plan_prefix<Threads>(a.sequences, prefix, count);
  return {prefix, size, (total & kSm90ItemMask) * a.kv_heads,
          (total >> kSm90ItemBits) * a.kv_heads};
}

// Item `local` of a sequence and a key head: the parts of its first tile, then of the next.
__device__ __forceinline__ Sm90Item sm90_item(const AttentionArgs& a, const Sm90Shape& shape,
                                              const Sm90List& list, int s, int head, int local) {
  Sm90Item it;
  const int queries = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s], most = shape.tokens_per_tile;
  const int parts = list.size < INT_MAX ? sm90_sequence(a, shape, s).parts(list.size) : 1;
  const int tile = parts == 1 ? local : local / parts, token = tile * most;
  const int tokens = min(most, queries - token);
  it.sequence = s, it.head = head, it.token = a.cu_seqlens_q[s];
  it.first_row = token * shape.group, it.rows = tokens * shape.group;
  it.position = max(a.seq_lens[s] - queries, 0);
  it.all_end = it.position + token + 1, it.end = it.all_end + tokens - 1;
  it.begin = attention_first(a, it.all_end - 1), it.all_begin = attention_first(a, it.end - 1);
  it.part = 0, it.parts = 1, it.slot = it.step = 0;
  if (parts == 1) return it;
  const int first = it.first_key(), tiles = (it.end - first + kSm90Keys - 1) / kSm90Keys;
  const int size = (tiles + parts - 1) / parts,
            from = first + (local - tile * parts) * size * kSm90Keys;
  it.part = local - tile * parts, it.parts = (tiles + size - 1) / size;
  it.slot = ((list.prefix[s] >> kSm90ItemBits) + tile * parts) * a.kv_heads + head;
  it.step = a.kv_heads;
  it.begin = max(it.begin, from), it.end = min(it.end, from + size * kSm90Keys);
  return it;
}

// The sequence whose items include `at`; `Shift`: of those counts in the list's words.
template <int Shift>
__device__ __forceinline__ int sm90_owner(const Sm90List& list, int sequences, int at) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    ((list.prefix[middle] >> Shift & kSm90ItemMask) <= at ? low : high) = middle;
  }
  return low;
}

// Item `index` of the list: of a sequence, the longest first. Without keys where its tile has fewer
// parts than others.
__device__ __forceinline__ Sm90Item sm90_item(const AttentionArgs& a, const Sm90Shape& shape,
                                              const Sm90List& list, int index) {
  const int flat = index / a.kv_heads, s = sm90_owner<0>(list, a.sequences, flat);
  return sm90_item(a, shape, list, s, index % a.kv_heads,
                   (list.prefix[s + 1] & kSm90ItemMask) - 1 - flat);
}

// Item `index` among those that are parts.
__device__ __forceinline__ Sm90Item sm90_part(const AttentionArgs& a, const Sm90Shape& shape,
                                              const Sm90List& list, int index) {
  const int flat = index / a.kv_heads, s = sm90_owner<kSm90ItemBits>(list, a.sequences, flat);
  return sm90_item(a, shape, list, s, index % a.kv_heads, flat - (list.prefix[s] >> kSm90ItemBits));
}

}  // namespace fd

// Causal attention of query rows over a paged cache.
//
// The key axis is cut at multiples of kSplit in absolute position. Each split gives a row a partial
// result (maximum, sum, weighted values), computed from nothing; partials are merged in ascending
// order. A row therefore has one result, bit for bit, whether its splits run on one thread or on
// many, alone or beside other rows, in a prefill or in a decode step.
#pragma once
#include <algorithm>

#include "fd/attention_call.h"
#include "fd/attention_tile.h"
#include "fd/math.h"
#include "fd/vocab_row.h"

namespace fd {
namespace attn {

constexpr int kSplit = 256;     // keys of a partial result
constexpr int kChunk = 64;      // keys widened to float at a time
constexpr int kAhead = 48;      // rows fetched into the cache before they are read
constexpr int kUnitRows = 128;  // query rows that share one pass over the keys
constexpr int kWidenRows = 8;   // from this many rows on, widening a chunk once pays

// Adjacent queries of one sequence under one key head: rows = queries * group, query-major.
struct Unit {
  int64_t sequence, kv_head, token, position, queries;
};

struct Range {
  int begin, end;
};

// Unnormalised result of `rows` rows. sum == 0: nothing merged yet.
struct Partial {
  float *acc, *max, *sum;

  Partial(float* memory, int64_t rows, int64_t padded)
      : acc(memory), max(memory + rows * padded), sum(max + rows) {}
  static int64_t floats(int64_t rows, int64_t padded) {
    return (rows * (padded + 2) + kLanes - 1) / kLanes * kLanes;
  }
};

// Memory of one worker, cut from the caller's buffer.
struct Memory {
  float *q, *s, *chunk, *part, *total;
  Range* ranges;

  Memory(float* memory, int64_t rows, int64_t padded) {
    q = memory;
    s = q + rows * padded;
    chunk = s + rows * kSplit;
    part = chunk + kChunk * padded;
    total = part + Partial::floats(rows, padded);
    ranges = reinterpret_cast<Range*>(total + Partial::floats(rows, padded));
  }
  static int64_t floats(int64_t rows, int64_t padded) {
    const int64_t n = rows * padded + rows * kSplit + kChunk * padded +
                      2 * Partial::floats(rows, padded) + 2 * rows;
    return (n + kLanes - 1) / kLanes * kLanes;
  }
};

template <int N>
struct Int {
  static constexpr int value = N;
};

// body(Int<R>, first row) over all rows, R as large as registers allow.
template <typename F>
inline void by_rows(int64_t rows, F&& body) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) body(Int<kRows>{}, r);
  if (kRows > 2 && r + 2 <= rows) {
    body(Int<2>{}, r);
    r += 2;
  }
  if (r < rows) body(Int<1>{}, r);
}

// Lanes outside the range become -inf; `at` is the index of lane 0. By the signs of differences:
// GCC 12 takes a comparison wider than a register apart.
inline vf hide(vf x, int at, Range range) {
  constexpr vi kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const vi index = kLane + at;
  const vu seen = reinterpret_cast<vu>((~(index - range.begin) & (index - range.end)) >> 31);
  return reinterpret_cast<vf>((reinterpret_cast<vu>(x) & seen) | (0xff800000u & ~seen));
}

// Logits of one row become exp(logit - max), 0 where hidden. Lanes sit at absolute key positions.
__attribute__((noinline)) inline void softmax_row(float* s, Range range, float soft_cap, float* max,
                                                  float* sum) {
  vf top = splat(-kInf);
  const int first = range.begin & ~(kLanes - 1);
  for (int j = first; j < range.end; j += kLanes) {
    vf x = load16(s + j);
    const bool part = j < range.begin || j + kLanes > range.end;
    if (soft_cap > 0) x = vtanh(x / soft_cap) * soft_cap;
    if (part) x = hide(x, j, range);
    if (part || soft_cap > 0) store16(s + j, x);
    top = vmax(top, x);
  }
  *max = max16(top);
  vf total{};
  for (int j = first; j < range.end; j += kLanes) {
    const vf p = vexp(load16(s + j) - *max);
    total += p;
    store16(s + j, p);
  }
  *sum = sum16(total);
}

// The only place where partials meet: one instance, so that contraction cannot differ by path.
__attribute__((noinline)) inline void merge_row(float* acc, float* max, float* sum,
                                                const float* new_acc, float new_max, float new_sum,
                                                int64_t padded) {
  if (*sum == 0) {
    std::memcpy(acc, new_acc, padded * sizeof(float));
    *max = new_max, *sum = new_sum;
    return;
  }
  const float top = new_max > *max ? new_max : *max;
  const float old_weight = expf_(*max - top), new_weight = expf_(new_max - top);
  *max = top, *sum = *sum * old_weight + new_sum * new_weight;
  for (int64_t d = 0; d < padded; d += kLanes)
    store16(acc + d, load16(acc + d) * old_weight + load16(new_acc + d) * new_weight);
}

template <typename T>
class Engine {
 public:
  Engine(const Call& call, Pool<T> key, Pool<T> value)
      : call_(call), key_(key), value_(value), group_(call.group()), padded_(call.padded()) {}

  int64_t rows(const Unit& u) const { return u.queries * group_; }
  int64_t first_key(int64_t position) const {
    return call_.window > 0 ? std::max<int64_t>(0, position + 1 - call_.window) : 0;
  }
  int64_t first_split(const Unit& u) const { return first_key(u.position) / kSplit; }
  int64_t last_split(const Unit& u) const { return (u.position + u.queries - 1) / kSplit; }

  void load_queries(const Unit& u, float* q) const {
    for (int64_t r = 0; r < rows(u); ++r) {
      const char* src = call_.q + (u.token + r / group_) * call_.q_token +
                        (u.kv_head * group_ + r % group_) * call_.q_head;
      call_.widen(src, call_.dim, call_.scale, q + r * padded_);
    }
  }

  // The unit's result over one split; rows that see nothing of it get sum 0.
  void partial(const Unit& u, int64_t split, const Memory& m, Partial out) const {
    const int64_t n = rows(u), base = split * kSplit;
    const T *k[kSplit + kAhead], *v[kSplit + kAhead];
    const Range all = fill_ranges(u, base, m.ranges);
    locate(u, base, all, k, v);
    const int first = all.begin & ~(kLanes - 1);
    for (int c = first & ~(kChunk - 1); c < all.end; c += kChunk)
      scores(n, k, Range{std::max(c, first), std::min(c + kChunk, all.end)}, m);
    std::fill_n(out.acc, n * padded_, 0.0f);
    for (int64_t r = 0; r < n; ++r) {
      out.sum[r] = 0;
      if (m.ranges[r].begin < m.ranges[r].end)
        softmax_row(m.s + r * kSplit, m.ranges[r], call_.soft_cap, out.max + r, out.sum + r);
    }
    for (int c = all.begin & ~(kChunk - 1); c < all.end; c += kChunk)
      values(n, v, Range{std::max(c, all.begin), std::min(c + kChunk, all.end)}, m, out.acc);
  }

  void merge(const Unit& u, Partial total, Partial part) const {
    for (int64_t r = 0; r < rows(u); ++r)
      if (part.sum[r] != 0)
        merge_row(total.acc + r * padded_, total.max + r, total.sum + r, part.acc + r * padded_,
                  part.max[r], part.sum[r], padded_);
  }

  void finish(const Unit& u, Partial total) const {
    for (int64_t r = 0; r < rows(u); ++r) {
      const int64_t head = u.kv_head * group_ + r % group_;
      float* acc = total.acc + r * padded_;
      float sum = total.sum[r];
      if (call_.sinks != nullptr) sum = add_sink(call_.sinks[head], total.max[r], sum, acc);
      char* dst = call_.out + (u.token + r / group_) * call_.out_token + head * call_.out_head;
      call_.narrow(acc, call_.dim, sum, dst);
    }
  }

 private:
  // Visible keys of each row relative to the split; returns their hull.
  Range fill_ranges(const Unit& u, int64_t base, Range* ranges) const {
    const auto relative = [base](int64_t key) {
      return static_cast<int>(std::min<int64_t>(kSplit, std::max<int64_t>(0, key - base)));
    };
    for (int64_t i = 0; i < u.queries; ++i) {
      const int64_t position = u.position + i;
      const Range range{relative(first_key(position)), relative(position + 1)};
      std::fill_n(ranges + i * group_, group_, range);
    }
    return Range{ranges[0].begin, ranges[rows(u) - 1].end};
  }

  // out[j] = row of `pool` at position base + j, for j in `range`.
  void addresses(const Unit& u, const Pool<T>& pool, int64_t base, Range range,
                 const T** out) const {
    const int32_t* table = call_.block_table + u.sequence * call_.table_stride;
    for (int j = range.begin; j < range.end;) {
      const int64_t block = (base + j) / call_.block_size, slot = (base + j) % call_.block_size;
      const int64_t n = std::min<int64_t>(call_.block_size - slot, range.end - j);
      const T* row =
          pool.data + table[block] * pool.block + slot * pool.slot + u.kv_head * pool.head;
      for (int64_t i = 0; i < n; ++i) out[j++] = row + i * pool.slot;
    }
  }

  // Rows of the keys and values in `all`. Beyond the ends of the keys, up to a multiple of sixteen,
  // stands the nearest visible one: whole tiles may be read and nothing unseen is ever touched.
  // Behind these come the kAhead rows that are read next: the first values, the next split's keys.
  void locate(const Unit& u, int64_t base, Range all, const T** k, const T** v) const {
    addresses(u, key_, base, all, k);
    addresses(u, value_, base, all, v);
    for (int j = all.begin & ~(kLanes - 1); j < all.begin; ++j) k[j] = k[all.begin];
    int end = all.end;
    for (; end % kLanes != 0; ++end) k[end] = k[all.end - 1];
    for (int i = 0; i < kAhead; ++i) k[end + i] = v[std::min(all.begin + i, all.end - 1)];
    const int64_t more = u.position + u.queries - base - all.end;
    const int next = static_cast<int>(std::min<int64_t>(kAhead, std::max<int64_t>(0, more)));
    addresses(u, key_, base + all.end, Range{0, next}, v + all.end);
    std::fill_n(v + all.end + next, kAhead - next, v[all.end - 1]);
  }

  bool widens(int64_t n) const {
    return kCoded<T> || call_.dim != padded_ || (sizeof(T) < sizeof(float) && n >= kWidenRows);
  }

  // `range` of `src` as floats in the chunk buffer, rows padded with zeros.
  void widen(const T* const* src, Range range, const Memory& m, const float** out) const {
    for (int j = range.begin; j < range.end; ++j) {
      prefetch_row(src[j + kAhead], call_.dim);
      float* dst = m.chunk + (j % kChunk) * padded_;
      widen_one(src[j], dst);
      out[j] = dst;
    }
  }

  template <typename U>
  void widen_one(const U* src, float* dst) const {
    if constexpr (kCoded<U>)
      widen_codes(src, dst);
    else
      widen_floats(src, dst);
  }
  template <typename U>
  void widen_floats(const U* src, float* dst) const {
    int64_t d = 0;
    for (; d + kWidth <= call_.dim / kLanes * kLanes; d += kWidth)
      store_part(dst + d, load_part(src + d));
    if (d < call_.dim) store16(dst + d, load_tail(src + d, static_cast<int>(call_.dim - d)));
  }
  template <typename U>
  void widen_codes(const U* src, float* dst) const {
    float scale;
    std::memcpy(&scale, src + call_.dim, kScaleBytes);
    int64_t d = 0;
    for (; d + kWidth <= call_.dim; d += kWidth) store_part(dst + d, load_part(src + d) * scale);
    for (; d < padded_; ++d) dst[d] = d < call_.dim ? code_float(src[d]) * scale : 0.0f;
  }

  void scores(int64_t n, const T* const* k, Range range, const Memory& m) const {
    range.end = (range.end + kLanes - 1) & ~(kLanes - 1);
    if constexpr (!kCoded<T>)
      if (!widens(n)) return qk(n, k, range, m);
    const float* wide[kSplit];
    widen(k, range, m, wide);
    qk(n, wide, range, m);
  }

  void values(int64_t n, const T* const* v, Range range, const Memory& m, float* acc) const {
    if constexpr (!kCoded<T>)
      if (!widens(n)) return pv(n, v, range, m, acc);
    const float* wide[kSplit];
    widen(v, range, m, wide);
    pv(n, wide, range, m, acc);
  }

  template <typename U>
  void qk(int64_t n, const U* const* k, Range range, const Memory& m) const {
    for (int j = range.begin; j < range.end; j += kLanes)
      by_rows(n, [&](auto size, int64_t r) {
        constexpr int R = decltype(size)::value;
        if (m.ranges[r + R - 1].end <= j || m.ranges[r].begin >= j + kLanes) return;
        const int ahead = r == 0 && std::is_same_v<U, T> && !widens(n) ? kAhead : 0;
        qk_block<R>(m.q + r * padded_, padded_, k + j, padded_, ahead, m.s + r * kSplit + j,
                    kSplit);
      });
  }

  template <typename U>
  void pv(int64_t n, const U* const* v, Range range, const Memory& m, float* acc) const {
    by_rows(n, [&](auto size, int64_t r) {
      constexpr int R = decltype(size)::value;
      const int ahead = r == 0 && std::is_same_v<U, T> && !widens(n) ? kAhead : 0;
      const auto alone = [&](int64_t row, int from, int to) {
        if (from < to)
          pv_rows<1>(m.s + row * kSplit, kSplit, v, padded_, from, to, 0, acc + row * padded_,
                     padded_);
      };
      const int begin = std::max(m.ranges[r + R - 1].begin, range.begin);  // seen by all R rows
      const int end = std::max(begin, std::min(m.ranges[r].end, range.end));
      for (int i = 0; i < R; ++i)
        alone(r + i, std::max(m.ranges[r + i].begin, range.begin),
              std::min({begin, m.ranges[r + i].end, range.end}));
      if (begin < end)
        pv_rows<R>(m.s + r * kSplit, kSplit, v, padded_, begin, end, ahead, acc + r * padded_,
                   padded_);
      for (int i = 0; i < R; ++i)
        alone(r + i, std::max({end, m.ranges[r + i].begin, range.begin}),
              std::min(m.ranges[r + i].end, range.end));
    });
  }

  // One more logit in the denominator; returns the new sum and rescales acc where the sink leads.
  float add_sink(float sink, float max, float sum, float* acc) const {
    const float top = sink > max ? sink : max, weight = expf_(max - top);
    for (int64_t d = 0; d < padded_; d += kLanes) store16(acc + d, load16(acc + d) * weight);
    return sum * weight + expf_(sink - top);
  }

  const Call& call_;
  Pool<T> key_, value_;
  int64_t group_, padded_;
};

}  // namespace attn
}  // namespace fd

// How one call of attention is cut into items and shared out: nothing here changes a result.
#include <atomic>
#include <vector>

#include "fd/attention.h"
#include "fd/parallel.h"
#include "fd/scratch.h"

namespace fd {
namespace attn {
namespace {

std::vector<Unit> units_of(const Call& call) {
  std::vector<Unit> units;
  const int64_t tile = std::max<int64_t>(1, kUnitRows / call.group());
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int64_t begin = call.cu_seqlens_q[s], n = call.cu_seqlens_q[s + 1] - begin;
    const int64_t past = call.seq_lens[s] - n;
    for (int64_t last = n; last > 0; last = (last - 1) / tile * tile) {  // longest first
      const int64_t i = (last - 1) / tile * tile;
      for (int64_t h = 0; h < call.kv_heads; ++h)
        units.push_back(Unit{s, h, begin + i, past + i, last - i});
    }
  }
  return units;
}

// Workers take items one by one: which worker computes an item changes nothing in it.
template <typename F>
void share(int64_t items, int workers, F&& body) {
  std::atomic<int64_t> next{0};
  parallel_for(workers, 1, [&](int64_t begin, int64_t) {
    for (int64_t i = next++; i < items; i = next++) body(begin, i);
  });
}

// Every unit on one worker: its splits one after the other.
template <typename T>
void run_units(const Engine<T>& engine, const std::vector<Unit>& units, int workers, int64_t rows,
               int64_t padded) {
  const int64_t each = Memory::floats(rows, padded);
  float* memory = scratch<2>(workers * each);
  share(units.size(), workers, [&, memory](int64_t worker, int64_t i) {
    const Unit& u = units[i];
    const Memory m(memory + worker * each, rows, padded);
    const Partial part(m.part, rows, padded), total(m.total, rows, padded);
    engine.load_queries(u, m.q);
    std::fill_n(total.sum, engine.rows(u), 0.0f);
    for (int64_t split = engine.first_split(u); split <= engine.last_split(u); ++split) {
      engine.partial(u, split, m, part);
      engine.merge(u, total, part);
    }
    engine.finish(u, total);
  });
}

// Few units and long contexts: splits are shared out as well, then merged in the same order.
template <typename T>
void run_splits(const Engine<T>& engine, const std::vector<Unit>& units, int workers, int64_t rows,
                int64_t padded) {
  std::vector<int64_t> first(1, 0);  // prefix sums of splits
  for (const Unit& u : units)
    first.push_back(first.back() + engine.last_split(u) - engine.first_split(u) + 1);
  const int64_t each = Memory::floats(rows, padded), size = Partial::floats(rows, padded);
  float* memory = scratch<2>(workers * each + first.back() * size);
  float* parts = memory + workers * each;
  share(first.back(), workers, [&](int64_t worker, int64_t i) {
    const int64_t n = std::upper_bound(first.begin(), first.end(), i) - first.begin() - 1;
    const Memory m(memory + worker * each, rows, padded);
    engine.load_queries(units[n], m.q);
    engine.partial(units[n], engine.first_split(units[n]) + i - first[n], m,
                   Partial(parts + i * size, rows, padded));
  });
  share(units.size(), workers, [&](int64_t, int64_t n) {
    const Partial total(parts + first[n] * size, rows, padded);
    for (int64_t i = first[n] + 1; i < first[n + 1]; ++i)
      engine.merge(units[n], total, Partial(parts + i * size, rows, padded));
    engine.finish(units[n], total);
  });
}

}  // namespace

template <typename T>
void run(const Call& call, Pool<T> key, Pool<T> value) {
  const Engine<T> engine(call, key, value);
  const std::vector<Unit> units = units_of(call);
  int64_t rows = 0, splits = 0;
  for (const Unit& u : units) {
    rows = std::max(rows, engine.rows(u));
    splits += engine.last_split(u) - engine.first_split(u) + 1;
  }
  const int64_t count = static_cast<int64_t>(units.size());
  const int workers = static_cast<int>(std::min<int64_t>(num_threads(), splits));
  if (workers > 1 && count < 4 * workers && splits > count)
    run_splits(engine, units, workers, rows, call.padded());
  else
    run_units(engine, units, workers, rows, call.padded());
}

template void run(const Call&, Pool<float>, Pool<float>);
template void run(const Call&, Pool<bf16>, Pool<bf16>);
template void run(const Call&, Pool<f16>, Pool<f16>);
template void run(const Call&, Pool<q8>, Pool<q8>);
template void run(const Call&, Pool<e4m3>, Pool<e4m3>);

}  // namespace attn
}  // namespace fd

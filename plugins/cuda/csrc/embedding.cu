#include "fd/ids.cuh"
#include "fd/pack.cuh"
#include "fd/rowmove.cuh"
#include "fd/rowwise.cuh"

namespace fd {

// Rows of the output's type. An id outside the table writes nothing.
struct EmbeddingCopy {
  ByteRows table, out;
  Ids ids;

  __device__ RowMove operator()(int64_t i) const {
    const int64_t id = ids[i];
    if (id < 0 || id >= table.count) return kStay;
    return {out.row(i), table.row(id), 0};
  }
};

// Rows converted, N elements a thread. An id outside the table writes nothing.
template <typename W, typename T, int N>
__global__ void embedding_rows(Ids ids, const W* table, int64_t table_step, int64_t vocabulary,
                               T* out, int64_t out_step, int64_t width, int64_t chunks) {
  let_next_start();
  wait_for_inputs();
  const auto [row, at] = row_place<N>(chunks);
  const int64_t id = ids[row];
  if (at >= width || id < 0 || id >= vocabulary) return;
  *reinterpret_cast<Vec<T, N>*>(out + row * out_step + at) =
      Converted<W, T, N>::of(table + id * table_step + at);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/tokens.h"
#include "fd/ids.h"
#include "fd/rowmove.h"
#include "fd/rowwise.h"

namespace fd {

template <typename W, typename T>
void embedding_launch(const Launch& on, const Ids& ids, Tensor weight, Tensor out) {
  constexpr int N = kPack<T> < kPack<W> ? kPack<T> : kPack<W>;
  const int64_t width = weight.size(1), table_step = weight.stride(0), out_step = out.stride(0);
  const W* table = weight.data<W>();
  T* to = out.data<T>();
  const auto start = [&](auto kernel, int each) {
    const RowGrid g = row_grid(ids.count, width, each);
    run_overlapped(on, kernel, g.grid, g.block, 0, ids, table, table_step, weight.size(0), to,
                   out_step, width, g.chunks);
  };
  if (packable<W>(width, {table_step}, {table}) && packable<T>(width, {out_step}, {to}))
    start(embedding_rows<W, T, N>, N);
  else
    start(embedding_rows<W, T, 1>, 1);
}

inline void embedding_copy(const Launch& on, const Ids& ids, Tensor weight, Tensor out) {
  const ByteRows from = byte_rows("embedding", "weight", weight);
  const ByteRows to = byte_rows("embedding", "out", out);
  move_all(on, EmbeddingCopy{from, to, ids}, ids.count, to.bytes, {from, to});
}

void embedding(Tensor ids, Tensor weight, Tensor out) {
  const char* op = "embedding";
  check_embedding(op, ids, weight, out);
  const Ids wanted = ids_of(op, "ids", ids);
  same_device(op, weight, {ids, out});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto weight_tag) {
    dispatch_float(op, "out", out, [&](auto tag) {
      using W = decltype(weight_tag);
      using T = decltype(tag);
      check_range(on, "ids", wanted, 0, weight.size(0));
      if constexpr (std::is_same_v<W, T>)
        embedding_copy(on, wanted, weight, out);
      else
        embedding_launch<W, T>(on, wanted, weight, out);
    });
  });
}
FD_EXPORT(embedding)

}  // namespace fd
#endif

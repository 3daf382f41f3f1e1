// pack_int4_given(weight, scales, zeros, codes), pack_int8_given and pack_rows_given(weight,
// scales, codes): codes of weights [N, K] that lie on the grid of `scales` and `zeros` [N, groups]
// already, in the layouts of linear_int4 and linear_int4_zero, linear_int8, linear_int8_dynamic.
// int4_steps(weight, scales, zeros) finds such for a plain weight.
#include "fd/pack_given.cuh"

#ifndef __CUDACC_RTC__
#include "fd/packed_checks.h"

namespace fd {

inline void check_given(const char* op, const char* name, Tensor given, const Tensor& weight,
                        int64_t groups) {
  Check{op, name, given}.rank(2).dim(0, weight.size(0)).dim(1, groups);
  Check{op, name, given}.dtype<float>("float32").contiguous();
}

template <typename W>
PlainMatrix<W> plain_matrix(const Tensor& weight) {
  return {weight.data<W>(), weight.stride(0), weight.size(0), weight.size(1)};
}

inline GivenSteps given_steps(const char* op, Tensor weight, Tensor scales, OptTensor zeros,
                              int64_t length) {
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  const int64_t groups = length > 0 ? blocks_of(weight.size(1), length) : 1;
  check_given(op, "scales", scales, weight, groups);
  if (zeros) check_given(op, "zeros", zeros, weight, groups);
  return {scales.data<float>(), zeros ? zeros.data<float>() : nullptr, groups,
          length > 0 ? length : std::max<int64_t>(weight.size(1), 1)};
}

// `scales` [N, 1]: all inputs of an output share one; else the codes' windows are groups.
void pack_int4_given(Tensor weight, Tensor scales, OptTensor zeros, Tensor codes) {
  const char* op = "pack_int4_given";
  Check{op, "weight", weight}.rank(2);
  Check{op, "scales", scales}.rank(2);
  const int64_t window = check_int4_codes(op, codes, weight.size(0), weight.size(1));
  const GivenSteps steps = given_steps(op, weight, scales, zeros, scales.size(1) == 1 ? 0 : window);
  same_device(op, weight, {scales, zeros, codes});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    const int64_t tiles = codes.size(0), quads = tiles * 8 * codes.size(1) * window / 4;
    run(on, pack_int4_given_quads<decltype(tag)>, dim3(blocks_of(quads, 256)), dim3(256), 0,
        plain_matrix<decltype(tag)>(weight), steps, tiles, codes.size(1), static_cast<int>(window),
        codes.data<uint32_t>());
  });
}
FD_EXPORT(pack_int4_given)

void pack_int8_given(Tensor weight, Tensor scales, Tensor codes) {
  const char* op = "pack_int8_given";
  const GivenSteps steps = given_steps(op, weight, scales, {}, 0);
  check_int8_codes(op, codes, weight.size(0), weight.size(1));
  same_device(op, weight, {scales, codes});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    const int64_t tiles = codes.size(0), quads = tiles * 8 * codes.size(1) * kInt8Window / 4;
    run(on, pack_int8_given_quads<decltype(tag)>, dim3(blocks_of(quads, 256)), dim3(256), 0,
        plain_matrix<decltype(tag)>(weight), steps, tiles, codes.size(1), codes.data<uint32_t>());
  });
}
FD_EXPORT(pack_int8_given)

void pack_rows_given(Tensor weight, Tensor scales, Tensor codes) {
  const char* op = "pack_rows_given";
  const GivenSteps steps = given_steps(op, weight, scales, {}, 0);
  Check{op, "codes", codes}.rank(2).dim(0, weight.size(0)).dim(1, weight.size(1));
  Check{op, "codes", codes}.dtype<int8_t>("int8").contiguous();
  same_device(op, weight, {scales, codes});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    run(on, pack_rows_given_codes<decltype(tag)>, dim3(blocks_of(codes.numel(), 256)), dim3(256), 0,
        plain_matrix<decltype(tag)>(weight), steps, codes.data<int8_t>());
  });
}
FD_EXPORT(pack_rows_given)

// Groups of `group` inputs; 0: one for all.
void int4_steps(Tensor weight, int64_t group, Tensor scales, Tensor zeros) {
  const char* op = "int4_steps";
  if (group != 0 && group != 64 && group != 128)
    fail("ValueError", op, ".group: want one of 0, 64, 128, have ", group);
  const GivenSteps steps = given_steps(op, weight, scales, OptTensor{zeros}, group);
  same_device(op, weight, {scales, zeros});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    run(on, int4_steps_groups<decltype(tag)>, dim3(blocks_of(scales.numel(), 8)), dim3(256), 0,
        plain_matrix<decltype(tag)>(weight), steps.groups, steps.length, scales.data<float>(),
        zeros.data<float>());
  });
}
FD_EXPORT(int4_steps)

}  // namespace fd
#endif

// Quantised weights in panels of 32 output columns; four steps of k (a quad) lie together, so that
// one 32-bit lane holds a column's quad. One order for every processor:
//
//   int8   [panels][quads][32 columns][4 k], two's complement; a float32 scale per column beside it
//   int4   [panels][groups] of { 32 bfloat16 scales ; [group / 4 quads][16 lanes][4 k] bytes }
//          the low nibble is column j, the high one column 16 + j, two's complement; the scales
//          interleave in the same way (lane j: columns j and 16 + j)
//   int4 with zero points: the same with 32 int8 zero points, column by column, after the scales;
//          a weight is (code - zero point) * scale
//
// K is filled up with zeros, to whole quads and groups.
#pragma once
#include "fd/dense.h"

namespace fd {
namespace gemm {

constexpr int kQuad = 4;
constexpr int64_t kInt8Quad = kPanel * kQuad;      // bytes
constexpr int64_t kInt4Quad = kPanel * kQuad / 2;  // bytes
constexpr int64_t kInt4Scales = kPanel * 2;        // bytes
constexpr int64_t kInt4Zeros = kPanel;             // bytes

inline int64_t quads_of(int64_t depth) { return (depth + kQuad - 1) / kQuad; }
inline int64_t groups_of(int64_t depth, int64_t group) { return (depth + group - 1) / group; }

// How many steps of k share a scale, and whether they have a zero point.
struct Int4Groups {
  int64_t length;
  bool zeros;

  int64_t header() const { return kInt4Scales + (zeros ? kInt4Zeros : 0); }
  int64_t bytes() const { return header() + length / kQuad * kInt4Quad; }
};

// packed [panels, groups, bytes of a group] uint8: these say which groups they are.
inline Int4Groups check_int4(const char* op, Tensor packed, int64_t depth, int64_t columns) {
  Check{op, "packed", packed}.rank(3).dtype<uint8_t>("uint8").contiguous();
  Check{op, "packed", packed}.dim(0, panels_of(columns));
  for (int64_t length : {32, 64, 128})
    for (bool zeros : {false, true}) {
      const Int4Groups groups{length, zeros};
      if (packed.size(2) != groups.bytes()) continue;
      Check{op, "packed", packed}.dim(1, groups_of(depth, length));
      return groups;
    }
  fail("ValueError", op, ".packed: want groups of 32, 64 or 128 (", Int4Groups{32, false}.bytes(),
       ", ", Int4Groups{64, false}.bytes(), " or ", Int4Groups{128, false}.bytes(), " bytes, ",
       kInt4Zeros, " more with zero points), have ", shape_text(packed));
}

// packed [panels, quads, 32, 4] int8 and scale [N] float32.
inline void check_int8(const char* op, Tensor packed, Tensor scale, int64_t depth,
                       int64_t columns) {
  Check{op, "packed", packed}.rank(4).dtype<int8_t>("int8").contiguous();
  Check{op, "packed", packed}.dim(0, panels_of(columns)).dim(1, quads_of(depth));
  Check{op, "packed", packed}.dim(2, kPanel).dim(3, kQuad);
  Check{op, "scale", scale}.rank(1).dim(0, columns).dtype<float>("float32").contiguous();
}

}  // namespace gemm
}  // namespace fd

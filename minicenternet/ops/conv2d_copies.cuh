// What the implicit GEMMs on tensor cores copy to shared memory in each step of a correlation.
#pragma once
#include "conv2d_tile.cuh"
#include "tensor_cores.cuh"

// A block's copies of 16 bytes: BK columns of the implicit matrix for BM pixels, and of the taps for BN outputs. A thread
// takes column d of rows r, r + ROWS, ... of both.
// CACHED: x comes by way of the L1 cache, and, where the channels are a multiple of BK, in an order in which it is still
// there when it is wanted again: the same channels through all taps, each of which sees most of the last one's pixels.
template <class T, int BM, int BN, int BK, int THREADS, bool CACHED>
struct StepCopies {
  static constexpr int CHUNK = 16 / sizeof(T), ROWS = THREADS / (BK / CHUNK);  // numbers of a copy; rows of one pass
  int d, r, n, first, depth, weight;  // n: first output; first: column of step 0; weight: where the output's taps begin
  bool by_taps;                       // the order
  Column column;
  Row row[BM / ROWS];

  __device__ __forceinline__ StepCopies(const Block<BM, BN>& block, int begin, const Correlation& g)
      : d(threadIdx.x % (BK / CHUNK) * CHUNK), r(threadIdx.x / (BK / CHUNK)), n(block.n0 + r), first(begin * BK + d),
        depth(g.depth()), weight(g.taps_begin + (block.group * g.outputs + n) * depth),
        by_taps(CACHED && g.channels % BK == 0), column(by_taps ? Column::of_lot(begin, BK, d, g) : Column(first, g)) {
#pragma unroll
    for (int i = 0; i < BM / ROWS; i++) row[i] = Row(block.m0 + r + i * ROWS, block.group, g);
  }

  // Begin those of a step; called for 0, 1, 2, ...  to_x, to_w: where row r goes; L: words from row to row.
  template <int L>
  __device__ __forceinline__ void begin(int step, uint32_t* to_x, uint32_t* to_w, const T* x, const T* taps,
                                        const Correlation& g) {
    const Away away(column, g);
    const int number = CACHED ? column.number(g) : first + step * BK;
#pragma unroll
    for (int i = 0; i < BM / ROWS; i++) {
      const int at = row[i].at(away, g);
      const T* from = x + max(at, 0);
      if (CACHED) cp_async_cached(to_x + i * ROWS * L, from, at >= 0);
      else cp_async(to_x + i * ROWS * L, from, at >= 0);
    }
#pragma unroll
    for (int i = 0; i < BN / ROWS; i++) {
      const bool inside = number < depth && n + i * ROWS < g.outputs;
      cp_async(to_w + i * ROWS * L, taps + (inside ? weight + i * ROWS * depth + number : 0), inside);
    }
    if (by_taps) column.advance_a_tap(BK, g);
    else column.advance(BK, g);
  }
};

// What the implicit GEMMs share: where the rows of a tile come from, and how a tile of results is written.
#pragma once
#include "conv2d.cuh"
#include "numbers.cuh"

// A block of a correlation: which tile of which phase it computes. Blocks that run at the same time have neighbouring
// numbers; counted outputs first, pixels last, they read the same pixels, which then come from the L2 cache.
template <int BM, int BN>
struct Block {
  int n0, group, phase, m0, part;  // first output, first pixel; part: number of the tile among all pixels' tiles

  __device__ Block(const Phases& phases) {
    const int columns = (phases.of[0].outputs + BN - 1) / BN, groups = phases.of[0].groups;
    const int tiles = gridDim.x / (columns * groups * phases.count);  // of a phase's pixels
    int number = blockIdx.x;
    n0 = number % columns * BN, number /= columns;
    group = number % groups, number /= groups;
    phase = number % phases.count, number /= phases.count;
    m0 = number * BM, part = phase * tiles + number;
  }
};

// Where there are too few tiles for a GPU, gridDim.y blocks share the steps through the depth of each.
struct Share {
  int begin, count;

  __device__ Share(int steps) {
    int most = (steps + gridDim.y - 1) / gridDim.y;
    begin = blockIdx.y * most;
    count = max(0, min(most, steps - begin));
  }
};

constexpr int BELOW = 1 << 29;  // a row below every map, also when it is added to itself

// A column of the implicit matrix as all rows of a tile see it: how far it lies from their tap (0, 0).
struct Away {
  int y, x, elements;

  Away() = default;
  __device__ Away(const Column& column, const Correlation& g) {
    y = g.y.step * column.k;
    x = g.x.step * column.l;
    elements = (y * g.width + x) * (g.groups * g.channels) + column.c;
    if (!column.inside(g)) y = BELOW;
  }
};

// Where pixel m begins to look, kept for each row of a tile: an element of the implicit matrix is an addition away.
struct alignas(16) Row {
  int y, x, first;  // tap (0, 0), and the group's first channel there, counted from that of x[0, 0, 0]

  Row() = default;
  __device__ Row(int m, int group, const Correlation& g) {
    bool exists = m < g.pixels();
    Pixel p(exists ? m : 0, g);
    y = g.y.start + g.y.stride * p.i;
    x = g.x.start + g.x.stride * p.j;
    first = ((p.b * g.height + y) * g.width + x) * (g.groups * g.channels) + group * g.channels;
    if (!exists) y = BELOW;
  }
  // Return the place of an element in x, -1 where it is zero. (No branch: && would make one.)
  __device__ int at(const Away& away, const Correlation& g) const {
    bool inside_y = (unsigned)(y + away.y) < (unsigned)g.height, inside_x = (unsigned)(x + away.x) < (unsigned)g.width;
    return inside_y & inside_x ? first + away.elements : -1;
  }
};

// A block's share of the pixels of a weight gradient, one of `splits`, BK pixels a step.
template <int BK>
struct PixelShare {
  int group, split, begin, end, steps;

  __device__ PixelShare(int splits, const Correlation& g) : group(blockIdx.z / splits), split(blockIdx.z % splits) {
    const int pixels = g.pixels(), most = ((pixels + BK - 1) / BK + splits - 1) / splits * BK;  // a multiple of BK
    begin = split * most;
    end = min(pixels, begin + most);
    steps = max(0, (end - begin + BK - 1) / BK);
  }
  // Find where the pixels of a step begin to look, one thread for each; beyond the share, below every map.
  __device__ __forceinline__ void find_rows(int step, Row (&rows)[BK], const Correlation& g) const {
    int m = begin + step * BK + threadIdx.x;
    if (threadIdx.x < BK) rows[threadIdx.x] = Row(m < end ? m : g.pixels(), group, g);
  }
};

// What is done to a tile before it leaves the registers.
struct Epilogue {
  const float* bias;  // (groups * outputs) or nullptr
  int relu;
  float* mean;     // (parts, groups * outputs) or nullptr: of the tile's pixels, for the batch norm that follows,
  float* squares;  // (parts, groups * outputs)             and the sum of squared deviations from that mean
};

// Below, a thread holds R x C of a block's tile of BM pixels x BN outputs: value[r][c] belongs to pixel m0 + row(r) and
// output n0 + column(c).

// Add the bias, rectify, and round to T: the statistics are of what will be read.
template <class T, int BM, int BN, int R, int C, class ColumnOf>
__device__ __forceinline__ void finish(float (&value)[R][C], ColumnOf column, const Block<BM, BN>& block,
                                       const Epilogue& end, const Correlation& g) {
#pragma unroll
  for (int c = 0; c < C; c++) {
    int n = block.n0 + column(c);
    float bias = end.bias && n < g.outputs ? end.bias[block.group * g.outputs + n] : 0.f;
#pragma unroll
    for (int r = 0; r < R; r++) {
      float v = value[r][c] + bias;
      if (end.relu && v < 0) v = 0;  // NaN stays, which fmaxf would hide
      value[r][c] = (float)T(v);
    }
  }
}

// Return where the channels of pixel m of a correlation begin in `out`.
__device__ __forceinline__ size_t begin_of(int m, const Correlation& g) {
  Pixel p(m, g);
  size_t y = g.first_y + g.jump_y * p.i, x = g.first_x + g.jump_x * p.j;
  return (((size_t)p.b * g.out_height + y) * g.out_width + x) * (g.groups * g.outputs);
}

template <int BN>
constexpr int LINE = BN + 8;  // numbers from row to row of a tile of results: neighbours lie in different banks

// Write a tile by way of shared memory, [BM][LINE]: there a thread puts the pairs that it holds, and from there 16 bytes
// at a time leave, so that neighbouring threads write neighbouring bytes.
template <class T, int BM, int BN, int R, int C, class RowOf, class ColumnOf>
__device__ __forceinline__ void write_tile(const float (&value)[R][C], RowOf row, ColumnOf column, T* tile,
                                           const Block<BM, BN>& block, T* __restrict__ out, const Correlation& g) {
  constexpr int THREADS = BM * BN / (R * C), CHUNK = 16 / sizeof(T), CHUNKS = BN / CHUNK;
  __shared__ int places[BM];
  for (int r = threadIdx.x; r < BM; r += THREADS)
    if (block.m0 + r < g.pixels()) places[r] = begin_of(block.m0 + r, g) + block.group * g.outputs + block.n0;
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int c = 0; c < C; c += 2)
      *(Pack<T, 2>*)(tile + row(r) * LINE<BN> + column(c)) = {T(value[r][c]), T(value[r][c + 1])};
  __syncthreads();
  const int rows = min(BM, g.pixels() - block.m0), columns = min(BN, g.outputs - block.n0);
  for (int i = threadIdx.x; i < rows * CHUNKS; i += THREADS) {
    int r = i / CHUNKS, c = i % CHUNKS * CHUNK;
    const T* from = tile + r * LINE<BN> + c;
    T* to = out + places[r] + c;
    if (g.outputs % CHUNK == 0) {  // then so is where it is written to
      if (c < columns) *(Pack<T, CHUNK>*)to = *(const Pack<T, CHUNK>*)from;
    } else {
      for (int k = 0; k < min(CHUNK, columns - c); k++) to[k] = from[k];
    }
  }
}

// Write what a block that shares a tile's depth has found: partial[split] has the layout of `out`, and
// conv2d_finish_splits does the rest.
template <int BM, int BN, int R, int C, class RowOf, class ColumnOf>
__device__ __forceinline__ void write_partial(const float (&value)[R][C], RowOf row, ColumnOf column,
                                              const Block<BM, BN>& block, float* __restrict__ partial,
                                              const Correlation& g) {
  const int channels = g.groups * g.outputs;
  partial += (size_t)blockIdx.y * g.batch * g.out_height * g.out_width * channels + block.group * g.outputs;
#pragma unroll
  for (int r = 0; r < R; r++) {
    int m = block.m0 + row(r);
    if (m >= g.pixels()) continue;
    size_t begin = begin_of(m, g);
#pragma unroll
    for (int c = 0; c < C; c++)
      if (block.n0 + column(c) < g.outputs) partial[begin + block.n0 + column(c)] = value[r][c];
  }
}

// Write mean and squares. LANES threads share a column; this thread is number `lane` of them. scratch: (LANES + 1) * BN
// floats of shared memory that nobody uses any more.
template <int BM, int BN, int LANES, int R, int C, class RowOf, class ColumnOf>
__device__ __forceinline__ void write_statistics(const float (&value)[R][C], RowOf row, ColumnOf column, int lane,
                                                 const Block<BM, BN>& block, const Epilogue& end, const Correlation& g,
                                                 float* scratch) {
  // First the means, then the deviations from them: nothing cancels. The order of every sum is fixed.
  const int pixels = g.pixels(), channels = g.groups * g.outputs, threads = BM * BN / (R * C);
  const float count = (float)min(BM, pixels - block.m0);
  float* mean = scratch + LANES * BN;
  for (int pass = 0; pass < 2; pass++) {
#pragma unroll
    for (int c = 0; c < C; c++) {
      float sum = 0.f, middle = pass ? mean[column(c)] : 0.f;
#pragma unroll
      for (int r = 0; r < R; r++) {
        float v = value[r][c] - middle;
        if (block.m0 + row(r) < pixels) sum += pass ? v * v : v;
      }
      scratch[lane * BN + column(c)] = sum;
    }
    __syncthreads();
    for (int n = threadIdx.x; n < BN; n += threads) {
      float total = 0.f;
      for (int l = 0; l < LANES; l++) total += scratch[l * BN + n];
      size_t at = (size_t)block.part * channels + block.group * g.outputs + block.n0 + n;
      if (!pass) mean[n] = total / count;
      if (block.n0 + n < g.outputs) (pass ? end.squares : end.mean)[at] = pass ? total : mean[n];
    }
    __syncthreads();
  }
}

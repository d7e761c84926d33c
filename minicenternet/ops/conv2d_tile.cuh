// What the implicit GEMMs share: where the rows of a tile come from, and how a tile of results is written.
#pragma once
#include "conv2d.cuh"

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

// A column of the implicit matrix as all rows of a tile see it: how far it lies from their tap (0, 0).
struct Away {
  int y, x, elements;

  __device__ Away(const Column& column, const Correlation& g) {
    int down = g.y.step * column.k, right = g.x.step * column.l;
    y = column.inside(g) ? down : 1 << 29;  // below every map
    x = right;
    elements = (down * g.width + right) * (g.groups * g.channels) + column.c;
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
    if (!exists) y = -(1 << 29);  // above every map
  }
  // Return the place of an element in x, -1 where it is zero.
  __device__ int at(const Away& away, const Correlation& g) const {
    bool inside = (unsigned)(y + away.y) < (unsigned)g.height && (unsigned)(x + away.x) < (unsigned)g.width;
    return inside ? first + away.elements : -1;
  }
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

// What is done to a tile before it leaves the registers.
struct Epilogue {
  const float* bias;  // (groups * outputs) or nullptr
  int relu;
  float* mean;     // (parts, groups * outputs) or nullptr: of the tile's pixels, for the batch norm that follows,
  float* squares;  // (parts, groups * outputs)             and the sum of squared deviations from that mean
};

// Write a block's tile, BM pixels x BN outputs, of which a thread holds R x C: value[r][c] belongs to pixel
// m0 + row(r) and output n0 + column(c); columns come in neighbouring pairs. LANES threads share a column; this
// thread is number `lane` of them. scratch: (LANES + 1) * BN floats of shared memory that nobody uses any more.
template <class T, int BM, int BN, int LANES, int R, int C, class RowOf, class ColumnOf>
__device__ __forceinline__ void write_tile(float (&value)[R][C], RowOf row, ColumnOf column, int lane,
                                           const Block<BM, BN>& block, T* __restrict__ out, const Epilogue& end,
                                           const Correlation& g, float* scratch) {
  const int pixels = g.pixels(), channels = g.groups * g.outputs;
  const int m0 = block.m0, n0 = block.n0, group = block.group;
#pragma unroll
  for (int c = 0; c < C; c++) {
    int n = n0 + column(c);
    float bias = end.bias && n < g.outputs ? end.bias[group * g.outputs + n] : 0.f;
#pragma unroll
    for (int r = 0; r < R; r++) {
      float v = value[r][c] + bias;
      if (end.relu && v < 0) v = 0;  // NaN stays, which fmaxf would hide
      value[r][c] = (float)T(v);  // the statistics are of what will be read
    }
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
    int m = m0 + row(r);
    if (m >= pixels) continue;
    Pixel p(m, g);
    size_t y = g.first_y + g.jump_y * p.i, x = g.first_x + g.jump_x * p.j;
    T* to = out + (((size_t)p.b * g.out_height + y) * g.out_width + x) * channels + group * g.outputs;
#pragma unroll
    for (int c = 0; c < C; c += 2) {
      int n = n0 + column(c);
      if (g.outputs % 2 == 0 && n < g.outputs) {
        *(Pair<T>*)(to + n) = {T(value[r][c]), T(value[r][c + 1])};
      } else {
        if (n < g.outputs) to[n] = T(value[r][c]);
        if (n + 1 < g.outputs) to[n + 1] = T(value[r][c + 1]);
      }
    }
  }
  if (!end.mean) return;

  // First the means, then the deviations from them: nothing cancels. The order of every sum is fixed.
  const int thread = threadIdx.x, threads = BM * BN / (R * C);
  const float count = (float)min(BM, pixels - m0);
  float* mean = scratch + LANES * BN;
  for (int pass = 0; pass < 2; pass++) {
#pragma unroll
    for (int c = 0; c < C; c++) {
      float sum = 0.f, middle = pass ? mean[column(c)] : 0.f;
#pragma unroll
      for (int r = 0; r < R; r++) {
        float v = value[r][c] - middle;
        if (m0 + row(r) < pixels) sum += pass ? v * v : v;
      }
      scratch[lane * BN + column(c)] = sum;
    }
    __syncthreads();
    for (int n = thread; n < BN; n += threads) {
      float total = 0.f;
      for (int l = 0; l < LANES; l++) total += scratch[l * BN + n];
      size_t at = (size_t)block.part * channels + group * g.outputs + n0 + n;
      if (!pass) mean[n] = total / count;
      if (n0 + n < g.outputs) (pass ? end.squares : end.mean)[at] = pass ? total : mean[n];
    }
    __syncthreads();
  }
}

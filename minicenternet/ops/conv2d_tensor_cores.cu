// Convolution, fourth rung: the implicit GEMM of conv2d_tiled.cu on tensor cores. A warp multiplies 16 x 8 tiles at a
// time (tensor_cores.cuh), and the copies of the next steps are under way while it does:
//
//     copy step 0 | copy step 1 | copy step 2 | copy step 3 | ...         a ring of STAGES buffers, cp.async
//                               | multiply 0  | multiply 1  | ...
//
// A block's tile is BM pixels x BN outputs, a warp's WM x WN of it; BK columns of the implicit matrix are a step.
// T: float is rounded to tf32, __half and __nv_bfloat16 are taken as they are; sums are float32. Rows of a tile in
// shared memory are 16 bytes longer than their BK numbers: the 8 rows that an ldmatrix reads lie in different banks.
// The launch bounds leave a thread 128 registers, so that 16 warps fit a processor.
// A copy is 16 bytes: channels must be a multiple of 4 (float) or 8 (the others), and the arrays aligned likewise.
#include "conv2d_tile.cuh"
#include "tensor_cores.cuh"

// Round n words in registers where T is float; the other types are ready for mma.
template <class T, int N>
__device__ __forceinline__ void to_operand(uint32_t (&words)[N]) {
  if (sizeof(T) == 4)
#pragma unroll
    for (int i = 0; i < N; i++) words[i] = round_to_tf32(words[i]);
}

// out[m, n] = bias[n] + sum over d of implicit[m, d] * taps[n, d]: the forward pass, or a phase of the input gradient.
template <class T, int BM, int BN, int BK, int WM, int WN, int STAGES>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32, (WM * WN > 2048 ? 8 : 16) / (BM / WM * (BN / WN)))
    conv2d_tensor_cores_correlate(const T* __restrict__ x, const T* __restrict__ taps, const float* __restrict__ bias,
                                  T* __restrict__ out, float* __restrict__ mean, float* __restrict__ squares,
                                  Phases phases, int relu) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32, CHUNK = 16 / sizeof(T);  // numbers of one copy
  constexpr int WORDS = BK * sizeof(T) / 4, L = WORDS + 4;                   // of a row, and from row to row
  constexpr int ROWS = THREADS / (BK / CHUNK);                               // rows that one pass of the threads copies
  extern __shared__ __align__(16) uint32_t shared[];
  uint32_t* tiles_x = shared;                    // [STAGES][BM][L]
  uint32_t* tiles_w = shared + STAGES * BM * L;  // [STAGES][BN][L]
  const Block<BM, BN> block(phases);
  const Correlation g = phases.of[block.phase];
  const int m0 = block.m0, n0 = block.n0, group = block.group, depth = g.depth();
  if (m0 >= g.pixels()) return;  // phases differ in size

  // This thread copies column d of rows r, r + ROWS, ... of both tiles.
  const int d = threadIdx.x % (BK / CHUNK) * CHUNK, r = threadIdx.x / (BK / CHUNK);
  Column column(d, g);
  Row<T> row[BM / ROWS];
#pragma unroll
  for (int i = 0; i < BM / ROWS; i++) row[i] = Row<T>(x, m0 + r + i * ROWS, group, g);
  const T* weight = taps + g.taps_begin + ((size_t)group * g.outputs + n0 + r) * depth + d;

  const int steps = (depth + BK - 1) / BK;
  auto copy = [&](int step) {  // called for step = 0, 1, 2, ...
    if (step < steps) {
      uint32_t* to_x = tiles_x + step % STAGES * BM * L + d / CHUNK * 4;
      uint32_t* to_w = tiles_w + step % STAGES * BN * L + d / CHUNK * 4;
#pragma unroll
      for (int i = 0; i < BM / ROWS; i++) {
        const T* seen = row[i].at(column, g);
        cp_async(to_x + (r + i * ROWS) * L, seen ? seen : x, seen);
      }
#pragma unroll
      for (int i = 0; i < BN / ROWS; i++) {
        bool inside = n0 + r + i * ROWS < g.outputs && step * BK + d < depth;
        cp_async(to_w + (r + i * ROWS) * L, inside ? weight + (size_t)i * ROWS * depth + step * BK : taps, inside);
      }
      column.advance(BK, g);
    }
    cp_async_commit();  // one group for each step, even an empty one: waiting counts groups
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(s);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp % (BM / WM) * WM, wn = warp / (BM / WM) * WN;
  float sum[WM / 8][WN / 4] = {};  // rows 8i + lane/4, columns 8j + 2*(lane%4) and the next
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();  // this thread's copies of `step` have landed,
    __syncthreads();              // everybody's have, and nobody reads the buffer any more that is filled next
    copy(step + STAGES - 1);
    const uint32_t* tile_x = tiles_x + step % STAGES * BM * L;
    const uint32_t* tile_w = tiles_w + step % STAGES * BN * L;
#pragma unroll
    for (int k = 0; k < WORDS; k += 8) {
      uint32_t a[WM / 16][4], b[WN / 16][4];
#pragma unroll
      for (int i = 0; i < WM / 16; i++) {
        ldmatrix(a[i], tile_x + (wm + 16 * i + lane % 16) * L + k + lane / 16 * 4);
        to_operand<T>(a[i]);
      }
#pragma unroll
      for (int j = 0; j < WN / 16; j++)  // two tiles of 8 outputs; the taps were rounded when they were arranged
        ldmatrix(b[j], tile_w + (wn + 16 * j + lane / 16 * 8 + lane % 8) * L + k + lane / 8 % 2 * 4);
#pragma unroll
      for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
          mma<T>(sum[2 * i][2 * j], sum[2 * i][2 * j + 1], sum[2 * i + 1][2 * j], sum[2 * i + 1][2 * j + 1], a[i],
                 b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
  __syncthreads();  // the tiles become write_tile's scratch
  write_tile<T, BM, BN, BM / WM * 8>(
      sum, [=](int i) { return wm + 8 * i + lane / 4; }, [=](int j) { return wn + j / 2 * 8 + lane % 4 * 2 + j % 2; },
      warp % (BM / WM) * 8 + lane / 4, block, out, Epilogue{bias, relu, mean, squares}, g, (float*)shared);
}

// A fragment of 16 numbers of the depth (tf32: 8) from a tile whose rows are the depth: a lane's two numbers of a word
// lie in two rows, which ldmatrix_transposed puts together; tf32 has one number a word. `first`: the tile's first row
// and column that the fragment covers. The order of the four words is that of A; for two B next to each other,
// words 1 and 2 change places.
template <class T>
__device__ __forceinline__ void load_transposed(uint32_t (&words)[4], const uint32_t* tile, int row, int column,
                                                int L) {
  const int lane = threadIdx.x % 32;
  if (sizeof(T) == 2) {
    const T* numbers = (const T*)tile;
    ldmatrix_transposed(words, numbers + (row + lane / 16 * 8 + lane % 8) * 2 * L + column + lane / 8 % 2 * 8);
  } else {
#pragma unroll
    for (int q = 0; q < 4; q++) words[q] = tile[(row + lane % 4 + q / 2 * 4) * L + column + lane / 4 + q % 2 * 8];
    to_operand<T>(words);
  }
}

// partial[split, group, o, d] = sum over the split's pixels m of dy[m, o] * implicit[m, d]. There are far more pixels
// than weights: `splits` blocks share them for each tile, and conv2d_sum_splits adds what they found.
// Blocks: x the outputs, y the depth, z = group * splits + split.
template <class T, int BM, int BN, int BK, int WM, int WN, int STAGES>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32, (WM * WN > 2048 ? 8 : 16) / (BM / WM * (BN / WN)))
    conv2d_tensor_cores_dweight(const T* __restrict__ x, const T* __restrict__ dy, float* __restrict__ partial,
                                Correlation g, int splits) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32, CHUNK = 16 / sizeof(T);
  constexpr int PAD = sizeof(T) == 4 ? 8 : 4;  // words: keeps the rows that a warp reads together in different banks
  constexpr int DYL = BM * sizeof(T) / 4 + PAD, XL = BN * sizeof(T) / 4 + PAD;
  constexpr int DY_ROWS = THREADS / (BM / CHUNK), X_ROWS = THREADS / (BN / CHUNK);
  extern __shared__ __align__(16) uint32_t shared[];
  uint32_t* tiles_dy = shared;                     // [STAGES][BK][DYL]
  uint32_t* tiles_x = shared + STAGES * BK * DYL;  // [STAGES][BK][XL]
  const int group = blockIdx.z / splits, split = blockIdx.z % splits, depth = g.depth(), pixels = g.pixels();
  const int o0 = blockIdx.x * BM, d0 = blockIdx.y * BN;
  const int share = ((pixels + BK - 1) / BK + splits - 1) / splits * BK;  // pixels of a split, a multiple of BK
  const int begin = split * share, end = min(pixels, begin + share);
  const int steps = max(0, (end - begin + BK - 1) / BK);

  // This thread copies the chunk at output o of rows dy_r, dy_r + DY_ROWS, ..., and at column d of rows x_r, ...
  const int dy_r = threadIdx.x / (BM / CHUNK), o = o0 + threadIdx.x % (BM / CHUNK) * CHUNK;
  const int x_r = threadIdx.x / (BN / CHUNK), d = d0 + threadIdx.x % (BN / CHUNK) * CHUNK;
  const Column column(d, g);
  const int below = g.y.step * column.k + g.y.start, beside = g.x.step * column.l + g.x.start;
  Pixel pixel[BK / X_ROWS];
#pragma unroll
  for (int i = 0; i < BK / X_ROWS; i++) pixel[i] = Pixel(begin + x_r + i * X_ROWS, g);
  auto copy = [&](int step) {  // called for step = 0, 1, 2, ...
    if (step < steps) {
      int m0 = begin + step * BK;
      uint32_t* to_dy = tiles_dy + step % STAGES * BK * DYL + (o - o0) / CHUNK * 4;
      uint32_t* to_x = tiles_x + step % STAGES * BK * XL + (d - d0) / CHUNK * 4;
#pragma unroll
      for (int i = 0; i < BK / DY_ROWS; i++) {
        int m = m0 + dy_r + i * DY_ROWS;
        bool inside = m < end && o < g.outputs;
        cp_async(to_dy + (dy_r + i * DY_ROWS) * DYL,
                 inside ? dy + ((size_t)m * g.groups + group) * g.outputs + o : dy, inside);
      }
#pragma unroll
      for (int i = 0; i < BK / X_ROWS; i++) {
        Pixel& p = pixel[i];
        int y = g.y.stride * p.i + below, x_ = g.x.stride * p.j + beside;
        bool inside = m0 + x_r + i * X_ROWS < end && d < depth && y >= 0 && y < g.height && x_ >= 0 && x_ < g.width;
        size_t at = (((size_t)p.b * g.height + y) * g.width + x_) * g.groups + group;
        cp_async(to_x + (x_r + i * X_ROWS) * XL, inside ? x + at * g.channels + column.c : x, inside);
        p.advance(BK, g);
      }
    }
    cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(s);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp % (BM / WM) * WM, wn = warp / (BM / WM) * WN;
  float sum[WM / 8][WN / 4] = {};
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    copy(step + STAGES - 1);
    const uint32_t* tile_dy = tiles_dy + step % STAGES * BK * DYL;
    const uint32_t* tile_x = tiles_x + step % STAGES * BK * XL;
#pragma unroll
    for (int k = 0; k < BK; k += 32 / sizeof(T)) {
      uint32_t a[WM / 16][4], b[WN / 16][4];
#pragma unroll
      for (int i = 0; i < WM / 16; i++) load_transposed<T>(a[i], tile_dy, k, wm + 16 * i, DYL);
#pragma unroll
      for (int j = 0; j < WN / 16; j++) load_transposed<T>(b[j], tile_x, k, wn + 16 * j, XL);
#pragma unroll
      for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
          mma<T>(sum[2 * i][2 * j], sum[2 * i][2 * j + 1], sum[2 * i + 1][2 * j], sum[2 * i + 1][2 * j + 1], a[i],
                 b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
    }
  }
  float* to = partial + ((size_t)split * g.groups + group) * g.outputs * depth;
#pragma unroll
  for (int i = 0; i < WM / 8; i++)
#pragma unroll
    for (int j = 0; j < WN / 4; j++) {
      int row = o0 + wm + 8 * i + lane / 4, col = d0 + wn + j / 2 * 8 + lane % 4 * 2 + j % 2;
      if (row < g.outputs && col < depth) to[(size_t)row * depth + col] = sum[i][j];
    }
}

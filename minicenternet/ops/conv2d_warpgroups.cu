// Convolution, fifth rung: the implicit GEMM of conv2d_tensor_cores.cu as Hopper GPUs (compute capability 9.0) are made
// for it. There four warps, a warpgroup, have the tensor cores multiply tiles that lie in shared memory, with no load to
// registers between, and go on while these are at it:
//
//     all        | wait, barrier | begin 0, copy 2 | wait, barrier | begin 1, copy 3 | ...
//     tensor cores               | multiply 0 ...................... | multiply 1 ... |
//
// A block is two warpgroups; each has BM / 2 of its BM pixels and all of its BN outputs. A step takes 32 words of the
// depth: rows of 128 bytes, as wgmma wants them (tensor_cores.cuh).
// At their peak the tensor cores multiply what a tile of 256 x 128 copies in a step, 48 KB, in 1024 clocks. So as not to
// wait for the L2 cache, x is copied by way of the L1 cache (conv2d_copies.cuh).
// float is cut off to tf32, which the tensor cores do by themselves; the taps were rounded when they were arranged.
#include "conv2d_copies.cuh"
#include "conv2d_tile.cuh"
#include "numbers.cuh"
#include "tensor_cores.cuh"

constexpr int WARPGROUPS = 2, THREADS = 128 * WARPGROUPS;
constexpr int ROW_WORDS = 32, CHUNKS = 8;  // of a row of a tile; a chunk is what a copy takes, 16 bytes

// Two blocks fit a processor where a thread keeps no more than 64 sums and the ring is less than half of its 227 KB.
template <int BM, int BN, int STAGES>
constexpr int BLOCKS = BM * BN <= 64 * THREADS && 4 * STAGES * (BM + BN) * ROW_WORDS <= 113 << 10 ? 2 : 1;

// out[m, n] = bias[n] + sum over d of implicit[m, d] * taps[n, d], as conv2d_tensor_cores_correlate.
template <class T, int BM, int BN, int BK, int STAGES>
__global__ void __launch_bounds__(THREADS, BLOCKS<BM, BN, STAGES>)
    conv2d_warpgroups_correlate(const T* __restrict__ x, const T* __restrict__ taps, const float* __restrict__ bias,
                                T* __restrict__ out, float* __restrict__ mean, float* __restrict__ squares,
                                float* __restrict__ partial, Phases phases, int relu) {
  constexpr int TILES = BM / 64 / WARPGROUPS;  // of 64 pixels, that a warpgroup has
  static_assert(BK * sizeof(T) == 4 * ROW_WORDS, "a row is 128 bytes");
  static_assert(BM * LINE<BN> * sizeof(T) <= 4 * STAGES * (BM + BN) * ROW_WORDS, "results need the place of the tiles");
  extern __shared__ __align__(1024) uint32_t shared[];
  uint32_t* tiles_x = shared;                            // [STAGES][BM][ROW_WORDS]
  uint32_t* tiles_w = shared + STAGES * BM * ROW_WORDS;  // [STAGES][BN][ROW_WORDS]
  const Block<BM, BN> block(phases);
  const Correlation g = phases.of[block.phase];
  if (block.m0 >= g.pixels()) return;  // phases differ in size

  const Share share((g.depth() + BK - 1) / BK);
  const int steps = share.count;
  StepCopies<T, BM, BN, BK, THREADS, true> copies(block, share.begin, g);
  const int place = copies.r * ROW_WORDS + swizzled(copies.r, threadIdx.x % CHUNKS) * 4;  // of its first row in a tile
  auto copy = [&](int step) {  // called for step = 0, 1, 2, ...
    uint32_t* to_x = tiles_x + step % STAGES * BM * ROW_WORDS + place;
    uint32_t* to_w = tiles_w + step % STAGES * BN * ROW_WORDS + place;
    if (step < steps) copies.template begin<ROW_WORDS>(step, to_x, to_w, x, taps, g);
    cp_async_commit();  // one group for each step, even an empty one: waiting counts groups
  };
#pragma unroll
  for (int s = 0; s < STAGES - 2; s++) copy(s);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warpgroup = warp / 4;
  float sum[TILES][BN / 2] = {};
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 3>();  // this thread's copies of this step have landed,
    fence_copies();               // tensor cores will see them,
    __syncthreads();              // and everybody's; and all have waited for the step before the last
    const uint32_t* tile_x = tiles_x + (step % STAGES * BM + warpgroup * TILES * 64) * ROW_WORDS;
    const uint32_t* tile_w = tiles_w + step % STAGES * BN * ROW_WORDS;
    warpgroup_begin();
#pragma unroll
    for (int k = 0; k < ROW_WORDS; k += 8)
#pragma unroll
      for (int i = 0; i < TILES; i++) warpgroup_mma<T>(sum[i], tile_x + i * 64 * ROW_WORDS + k, tile_w + k);
    warpgroup_commit();
    copy(step + STAGES - 2);  // to where the step before the last lay
    warpgroup_wait<1>();      // the last step's products
  }
  warpgroup_finish(sum);
  __syncthreads();  // nobody reads the tiles any more: their place is for the results and for scratch

  float value[2 * TILES][BN / 4];
#pragma unroll
  for (int i = 0; i < 2 * TILES; i++)
#pragma unroll
    for (int j = 0; j < BN / 4; j++) value[i][j] = sum[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2];
  const auto row_of = [=](int i) { return (warpgroup * TILES + i / 2) * 64 + warp % 4 * 16 + i % 2 * 8 + lane / 4; };
  const auto output_of = [=](int j) { return j / 2 * 8 + lane % 4 * 2 + j % 2; };
  if (partial) return write_partial(value, row_of, output_of, block, partial, g);
  const Epilogue end{bias, relu, mean, squares};
  finish<T>(value, output_of, block, end, g);
  write_tile<T, BM, BN>(value, row_of, output_of, (T*)shared, block, out, g);
  if (mean) {
    __syncthreads();
    write_statistics<BM, BN, THREADS / 4>(value, row_of, output_of, warp * 8 + lane / 4, block, end, g, (float*)shared);
  }
}

// partial[split, group, o, d] = sum over the split's pixels m of dy[m, o] * implicit[m, d], as conv2d_tensor_cores_dweight,
// for numbers of 16 bits. A row of a tile is a pixel, with 64 of dy's outputs or 64 columns of the implicit matrix; these
// multiply transposed, which wgmma does not do for tf32. Where there are but 64 outputs, the two warpgroups have a half of
// the columns each.
// Blocks: x the outputs, y the depth, z = group * splits + split.
template <class T, int BM, int BN, int BK, int STAGES>
__global__ void __launch_bounds__(THREADS, BLOCKS<BM, BN, STAGES>)
    conv2d_warpgroups_dweight(const T* __restrict__ x, const T* __restrict__ dy, float* __restrict__ partial,
                              Correlation g, int splits) {
  constexpr int CHUNK = 8, ROWS = THREADS / CHUNKS, SIDE = 64;  // numbers of a copy; rows of a pass; numbers of a row
  constexpr int DOWN = BM > SIDE ? WARPGROUPS : 1, N = BN * DOWN / WARPGROUPS;  // warpgroups among the outputs
  constexpr int TILES = BM / 64 / DOWN;
  static_assert(sizeof(T) == 2, "wgmma transposes numbers of 16 bits alone");
  extern __shared__ __align__(1024) uint32_t shared[];
  uint32_t* tiles_dy = shared;                                       // [STAGES][BM / SIDE][BK][ROW_WORDS]
  uint32_t* tiles_x = shared + STAGES * BM / SIDE * BK * ROW_WORDS;  // [STAGES][BN / SIDE][BK][ROW_WORDS]
  const PixelShare<BK> share(splits, g);
  const int o0 = blockIdx.x * BM, d0 = blockIdx.y * BN, depth = g.depth();

  // Column d; where it can be, all taps of 64 channels one after another: what one tap saw the next finds in L1.
  auto column = [&](int d) {
    return g.channels % SIDE == 0 ? Column::of_lot(d / SIDE, SIDE, d % SIDE, g) : Column(d, g);
  };
  // This thread copies a chunk of rows r, r + ROWS, ... of every 64 outputs, from o on, and of every 64 columns.
  const int r = threadIdx.x / CHUNKS, o = o0 + threadIdx.x % CHUNKS * CHUNK;
  const int place = r * ROW_WORDS + swizzled(r, threadIdx.x % CHUNKS) * 4;
  Away away[BN / SIDE];  // below every map where the column is none of the depth
#pragma unroll
  for (int j = 0; j < BN / SIDE; j++) {
    const int d = d0 + j * SIDE + threadIdx.x % CHUNKS * CHUNK;
    away[j] = Away(column(d), g);
    if (d >= depth) away[j].y = BELOW;
  }
  __shared__ Row rows[2][BK];  // of a step, found a step ahead
  auto copy = [&](int step) {  // called for step = 0, 1, 2, ...
    if (step < share.steps) {
      uint32_t* to_dy = tiles_dy + step % STAGES * (BM / SIDE) * BK * ROW_WORDS + place;
      uint32_t* to_x = tiles_x + step % STAGES * (BN / SIDE) * BK * ROW_WORDS + place;
      const unsigned m = share.begin + step * BK + r, channels = g.groups * g.outputs;
      const unsigned at = m * channels + share.group * g.outputs + o;  // not used where it is beyond the array's end
#pragma unroll
      for (int i = 0; i < BK / ROWS; i++) {
        const Row row = rows[step % 2][r + i * ROWS];
#pragma unroll
        for (int j = 0; j < BN / SIDE; j++) {
          int at_x = row.at(away[j], g);
          cp_async_cached(to_x + (j * BK + i * ROWS) * ROW_WORDS, x + max(at_x, 0), at_x >= 0);
        }
#pragma unroll
        for (int j = 0; j < BM / SIDE; j++) {
          bool inside = m + i * ROWS < share.end && o + j * SIDE < g.outputs;
          cp_async(to_dy + (j * BK + i * ROWS) * ROW_WORDS, dy + (inside ? at + i * ROWS * channels + j * SIDE : 0),
                   inside);
        }
      }
    }
    cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) {  // the last round finds rows alone
    share.find_rows(s, rows[s % 2], g);
    __syncthreads();
    if (s < STAGES - 2) copy(s);
  }

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warpgroup = warp / 4;
  const int side_dy = warpgroup % DOWN * TILES, side_x = warpgroup / DOWN * (N / SIDE);
  float sum[TILES][N / 2] = {};
  for (int step = 0; step < share.steps; step++) {
    cp_async_wait<STAGES - 3>();
    fence_copies();
    __syncthreads();
    const uint32_t* tile_dy = tiles_dy + (step % STAGES * (BM / SIDE) + side_dy) * BK * ROW_WORDS;
    const uint32_t* tile_x = tiles_x + (step % STAGES * (BN / SIDE) + side_x) * BK * ROW_WORDS;
    warpgroup_begin();
#pragma unroll
    for (int k = 0; k < BK; k += 16)
#pragma unroll
      for (int i = 0; i < TILES; i++)
        warpgroup_mma_transposed<T>(sum[i], tile_dy + (i * BK + k) * ROW_WORDS, tile_x + k * ROW_WORDS,
                                    BK * ROW_WORDS * 4);
    warpgroup_commit();
    copy(step + STAGES - 2);
    share.find_rows(step + STAGES - 1, rows[(step + STAGES - 1) % 2], g);
    warpgroup_wait<1>();
  }
  warpgroup_finish(sum);
  float* to = partial + ((size_t)share.split * g.groups + share.group) * g.outputs * depth;
#pragma unroll
  for (int q = 0; q < N / SIDE; q++) {
    const int first = d0 + (side_x + q) * SIDE, number = column(first).number(g);  // of 64 columns, as x has them
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
      int row = o0 + (side_dy + i / 2) * 64 + warp % 4 * 16 + i % 2 * 8 + lane / 4;
      if (row >= g.outputs) continue;
#pragma unroll
      for (int j = 0; j < SIDE / 8; j++) {  // the depth is a multiple of what a copy takes, and so is even
        int beyond = 8 * j + lane % 4 * 2;
        const float* pair = &sum[i / 2][4 * (q * SIDE / 8 + j) + i % 2 * 2];
        if (first + beyond < depth) *(Pack<float, 2>*)(to + (size_t)row * depth + number + beyond) = {pair[0], pair[1]};
      }
    }
  }
}

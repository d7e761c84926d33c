// Convolution, fourth rung: the implicit GEMM of conv2d_tiled.cu on tensor cores. A warp multiplies 16 x 8 tiles at a
// time (tensor_cores.cuh), and what it will need is under way while it does:
//
//     copy step 0 | copy step 1 | copy step 2 | copy step 3 | ...         a ring of STAGES buffers, cp.async
//                               | multiply 0  | multiply 1  | ...
//                                  load k = 1    ...                     from shared memory to registers, a slice of
//                                  multiply k=0  ...                     the depth ahead of the multiplications
//
// A block's tile is BM pixels x BN outputs, a warp's WM x WN of it; BK columns of the implicit matrix are a step.
// T: float is rounded to tf32 (in the weight gradient cut off), __half and __nv_bfloat16 are taken as they are; sums are
// float32. Rows of a tile in shared memory are 16 bytes longer than their BK numbers: the 8 rows that an ldmatrix reads
// lie in different banks.
// Tensor cores are fast: what is done for each copy of 16 bytes must be a few additions and comparisons.
// The launch bounds leave a thread 128 registers, so that 16 warps of 32 x 32 sums fit a processor; 64 x 64 sums take 8.
// A copy is 16 bytes: channels must be a multiple of 4 (float) or 8 (the others), and the arrays aligned likewise.
#include "conv2d_copies.cuh"
#include "conv2d_tile.cuh"
#include "numbers.cuh"
#include "tensor_cores.cuh"

// Round n words in registers where T is float; the other types are ready for mma.
template <class T, int N>
__device__ __forceinline__ void to_operand(uint32_t (&words)[N]) {
  if (sizeof(T) == 4)
#pragma unroll
    for (int i = 0; i < N; i++) words[i] = round_to_tf32(words[i]);
}

// sum += A B for the tile of a warp: an A is 16 rows, a B twice 8 columns, of the same slice of the depth.
template <class T, int M, int N>
__device__ __forceinline__ void multiply(float (&sum)[2 * M][4 * N], const uint32_t (&a)[M][4],
                                         const uint32_t (&b)[N][4]) {
#pragma unroll
  for (int i = 0; i < M; i++)
#pragma unroll
    for (int j = 0; j < 2 * N; j++)
      mma<T>(sum[2 * i][2 * j], sum[2 * i][2 * j + 1], sum[2 * i + 1][2 * j], sum[2 * i + 1][2 * j + 1], a[i],
             b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
}

template <int WM, int WN>
constexpr int WARPS = WM * WN > 2048 ? 8 : WM * WN > 1024 ? 12 : 16;  // that fit a processor with their registers

// out[m, n] = bias[n] + sum over d of implicit[m, d] * taps[n, d]: the forward pass, or a phase of the input gradient.
template <class T, int BM, int BN, int BK, int WM, int WN, int STAGES>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32, WARPS<WM, WN> / (BM / WM * (BN / WN)))
    conv2d_tensor_cores_correlate(const T* __restrict__ x, const T* __restrict__ taps, const float* __restrict__ bias,
                                  T* __restrict__ out, float* __restrict__ mean, float* __restrict__ squares,
                                  float* __restrict__ partial, Phases phases, int relu) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32;
  constexpr int WORDS = BK * sizeof(T) / 4, L = WORDS + 4;  // of a row, and from row to row
  extern __shared__ __align__(16) uint32_t shared[];
  uint32_t* tiles_x = shared;                    // [STAGES][BM][L]
  uint32_t* tiles_w = shared + STAGES * BM * L;  // [STAGES][BN][L]
  const Block<BM, BN> block(phases);
  const Correlation g = phases.of[block.phase];
  if (block.m0 >= g.pixels()) return;  // phases differ in size

  const Share share((g.depth() + BK - 1) / BK);
  const int steps = share.count;
  StepCopies<T, BM, BN, BK, THREADS, false> copies(block, share.begin, g);
  const int place = copies.r * L + copies.d / copies.CHUNK * 4;  // of its first row in a tile
  auto copy = [&](int step) {  // called for step = 0, 1, 2, ...
    uint32_t *to_x = tiles_x + step % STAGES * BM * L + place, *to_w = tiles_w + step % STAGES * BN * L + place;
    if (step < steps) copies.template begin<L>(step, to_x, to_w, x, taps, g);
    cp_async_commit();  // one group for each step, even an empty one: waiting counts groups
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(s);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp % (BM / WM) * WM, wn = warp / (BM / WM) * WN;
  const uint32_t* from_x = tiles_x + (wm + lane % 16) * L + lane / 16 * 4;
  const uint32_t* from_w = tiles_w + (wn + lane / 16 * 8 + lane % 8) * L + lane / 8 % 2 * 4;
  uint32_t a[2][WM / 16][4], b[2][WN / 16][4];  // of the slice that is multiplied, and of the next one
  auto load = [&](int step, int k, int to) {
#pragma unroll
    for (int i = 0; i < WM / 16; i++) ldmatrix(a[to][i], from_x + (step % STAGES * BM + 16 * i) * L + k);
#pragma unroll
    for (int j = 0; j < WN / 16; j++) ldmatrix(b[to][j], from_w + (step % STAGES * BN + 16 * j) * L + k);
  };
  float sum[WM / 8][WN / 4] = {};  // rows 8i + lane/4, columns 8j + 2*(lane%4) and the next
  cp_async_wait<STAGES - 2>();  // this thread's copies of step 0 have landed,
  __syncthreads();              // everybody's have
  load(0, 0, 0);
  for (int step = 0; step < steps; step++) {
    copy(step + STAGES - 1);
#pragma unroll
    for (int k = 0; k < WORDS; k += 8) {
      const int now = k / 8 % 2;
      if (k + 8 < WORDS) {
        load(step, k + 8, 1 - now);
      } else if (step + 1 < steps) {
        cp_async_wait<STAGES - 2>();  // this thread's copies of the next step have landed,
        __syncthreads();              // everybody's have, and nobody reads the buffer any more that is filled next
        load(step + 1, 0, 1 - now);
      }
#pragma unroll
      for (int i = 0; i < WM / 16; i++) to_operand<T>(a[now][i]);  // the taps were rounded when they were arranged
      multiply<T>(sum, a[now], b[now]);
    }
  }
  __syncthreads();  // nobody reads the tiles any more: their place is for the results and for scratch
  const auto row_of = [=](int i) { return wm + 8 * i + lane / 4; };
  const auto output_of = [=](int j) { return wn + j / 2 * 8 + lane % 4 * 2 + j % 2; };
  if (partial) return write_partial(sum, row_of, output_of, block, partial, g);
  const Epilogue end{bias, relu, mean, squares};
  finish<T>(sum, output_of, block, end, g);
  T* tile = (T*)shared;
  write_tile<T, BM, BN>(sum, row_of, output_of, tile, block, out, g);
  if (mean)
    write_statistics<BM, BN, BM / WM * 8>(sum, row_of, output_of, warp % (BM / WM) * 8 + lane / 4, block, end, g,
                                          (float*)(tile + BM * LINE<BN>));
}

// The fragments of 16 columns (A) or twice 8 (B, in which words 1 and 2 have changed places) from a tile whose rows are
// the depth, 16 of them (tf32: 8) from `row` on. 16 bits: a lane's two numbers of a word lie in two rows, which
// ldmatrix_transposed puts together. tf32: a word is a number, and of A a lane reads two at once that lie side by side:
// they count as columns lane / 4 and 8 + lane / 4 of the fragment (`output_of_row`).
template <class T, bool IS_B, int FRAGMENTS>
__device__ __forceinline__ void load_transposed(uint32_t (&words)[FRAGMENTS][4], const uint32_t* tile, int row,
                                                int column, int L) {
  const int lane = threadIdx.x % 32;
  if (sizeof(T) == 2) {
    int down = IS_B ? lane / 8 % 2 : lane / 16, right = IS_B ? lane / 16 : lane / 8 % 2;  // of the matrix of 8 x 8
    const T* numbers = (const T*)tile + (row + down * 8 + lane % 8) * 2 * L + column + right * 8;
#pragma unroll
    for (int i = 0; i < FRAGMENTS; i++) ldmatrix_transposed(words[i], numbers + 16 * i);
    return;
  }
#pragma unroll
  for (int down = 0; down < 2; down++) {
    const uint32_t* from = tile + (row + lane % 4 + 4 * down) * L + column + (IS_B ? lane / 4 : lane / 4 * 2);
#pragma unroll
    for (int i = 0; i < FRAGMENTS; i++) {
      if (IS_B) {
        words[i][down] = from[16 * i], words[i][2 + down] = from[16 * i + 8];
      } else {
        const auto two = *(const Pack<uint32_t, 2>*)(from + 16 * i);
        words[i][2 * down] = two.at[0], words[i][2 * down + 1] = two.at[1];
      }
    }
  }
}

// Return which output row i of a warp's sums is, as load_transposed has brought them; the columns are in order.
template <class T>
__device__ __forceinline__ int output_of_row(int i) {
  const int lane = threadIdx.x % 32;
  return sizeof(T) == 2 ? 8 * i + lane / 4 : i / 2 * 16 + lane / 4 * 2 + i % 2;
}

// partial[split, group, o, d] = sum over the split's pixels m of dy[m, o] * implicit[m, d]. There are far more pixels
// than weights: `splits` blocks share them for each tile, and conv2d_sum_splits adds what they found. float is cut off to
// tf32 here, which the tensor cores do by themselves: to round both sides would take twice the instructions of the
// multiplications.
// Blocks: x the outputs, y the depth, z = group * splits + split.
template <class T, int BM, int BN, int BK, int WM, int WN, int STAGES>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32, WARPS<WM, WN> / (BM / WM * (BN / WN)))
    conv2d_tensor_cores_dweight(const T* __restrict__ x, const T* __restrict__ dy, float* __restrict__ partial,
                                Correlation g, int splits) {
  constexpr int THREADS = BM / WM * (BN / WN) * 32, CHUNK = 16 / sizeof(T);
  constexpr int PAD = sizeof(T) == 4 ? 8 : 4;  // words: keeps the rows that a warp reads together in different banks
  constexpr int DYL = BM * sizeof(T) / 4 + PAD, XL = BN * sizeof(T) / 4 + PAD;
  constexpr int DY_ROWS = THREADS / (BM / CHUNK), X_ROWS = THREADS / (BN / CHUNK);
  extern __shared__ __align__(16) uint32_t shared[];
  uint32_t* tiles_dy = shared;                     // [STAGES][BK][DYL]
  uint32_t* tiles_x = shared + STAGES * BK * DYL;  // [STAGES][BK][XL]
  const PixelShare<BK> share(splits, g);
  const int o0 = blockIdx.x * BM, d0 = blockIdx.y * BN, depth = g.depth();

  // This thread copies the chunk at output o of rows dy_r, dy_r + DY_ROWS, ..., and at column d of rows x_r, ...
  const int dy_r = threadIdx.x / (BM / CHUNK), o = o0 + threadIdx.x % (BM / CHUNK) * CHUNK;
  const int x_r = threadIdx.x / (BN / CHUNK), d = d0 + threadIdx.x % (BN / CHUNK) * CHUNK;
  const Away away(Column(d, g), g);  // below every map where d >= depth
  __shared__ Row rows[2][BK];  // of a step, found a step ahead
  auto copy = [&](int step) {  // called for step = 0, 1, 2, ...
    if (step < share.steps) {
      int at_x[BK / X_ROWS];  // found first, so that the copies do not wait for one another's loads
#pragma unroll
      for (int i = 0; i < BK / X_ROWS; i++) at_x[i] = rows[step % 2][x_r + i * X_ROWS].at(away, g);
      uint32_t* to_dy = tiles_dy + (step % STAGES * BK + dy_r) * DYL + (o - o0) / CHUNK * 4;
      uint32_t* to_x = tiles_x + (step % STAGES * BK + x_r) * XL + (d - d0) / CHUNK * 4;
      const unsigned m = share.begin + step * BK + dy_r, channels = g.groups * g.outputs;
      const unsigned at = m * channels + share.group * g.outputs + o;  // not used where it is beyond the array's end
#pragma unroll
      for (int i = 0; i < BK / DY_ROWS; i++) {
        bool inside = m + i * DY_ROWS < share.end && o < g.outputs;
        cp_async(to_dy + i * DY_ROWS * DYL, dy + (inside ? at + i * DY_ROWS * channels : 0), inside);
      }
#pragma unroll
      for (int i = 0; i < BK / X_ROWS; i++) cp_async(to_x + i * X_ROWS * XL, x + max(at_x[i], 0), at_x[i] >= 0);
    }
    cp_async_commit();
  };
  for (int s = 0; s < STAGES; s++) {  // the last round finds rows alone
    share.find_rows(s, rows[s % 2], g);
    __syncthreads();
    if (s < STAGES - 1) copy(s);
  }

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp % (BM / WM) * WM, wn = warp / (BM / WM) * WN;
  constexpr int SLICE = 32 / sizeof(T);         // rows that a multiplication takes
  uint32_t a[2][WM / 16][4], b[2][WN / 16][4];  // of the slice that is multiplied, and of the next one
  auto load = [&](int step, int k, int to) {
    const uint32_t* tile_dy = tiles_dy + step % STAGES * BK * DYL;
    const uint32_t* tile_x = tiles_x + step % STAGES * BK * XL;
    load_transposed<T, false>(a[to], tile_dy, k, wm, DYL);
    load_transposed<T, true>(b[to], tile_x, k, wn, XL);
  };
  float sum[WM / 8][WN / 4] = {};
  cp_async_wait<STAGES - 2>();
  __syncthreads();
  load(0, 0, 0);
  for (int step = 0; step < share.steps; step++) {
    copy(step + STAGES - 1);
    share.find_rows(step + STAGES, rows[(step + STAGES) % 2], g);
#pragma unroll
    for (int k = 0; k < BK; k += SLICE) {
      const int now = k / SLICE % 2;
      if (k + SLICE < BK) {
        load(step, k + SLICE, 1 - now);
      } else if (step + 1 < share.steps) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        load(step + 1, 0, 1 - now);
      }
      multiply<T>(sum, a[now], b[now]);
    }
  }
  float* to = partial + ((size_t)share.split * g.groups + share.group) * g.outputs * depth;
#pragma unroll
  for (int i = 0; i < WM / 8; i++) {
    int row = o0 + wm + output_of_row<T>(i);
    if (row >= g.outputs) continue;
#pragma unroll
    for (int j = 0; j < WN / 4; j += 2) {  // the depth is a multiple of what a copy takes, and so is even
      int col = d0 + wn + 4 * j + lane % 4 * 2;
      if (col < depth) *(Pack<float, 2>*)(to + (size_t)row * depth + col) = {sum[i][j], sum[i][j + 1]};
    }
  }
}

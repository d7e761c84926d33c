// Convolution, third rung (implicit GEMM): im2col's matrix product, whose columns are never written down. A block
// computes a tile of the result; what it needs is brought to shared memory step by step, and each thread keeps a small
// tile of sums in registers.
//
//                    taps (N, depth)^T                       depth = (u, v, c), BK of it at a time
//                    +-----+-----+            pixels m0 .. m0+BM-1 of the implicit matrix (its addresses are computed),
//                 BK |     | BN  |            outputs n0 .. n0+BN-1
//                    +-----+-----+
//            BK            |  |               thread (ty, tx) of the block:
//         +------+   +-----+--v--+              TM x TN sums; for each k, TM + TN loads from shared memory for
//      BM |   ---+-> |     | TMxTN              TM * TN multiply-adds
//         +------+   +-----+-----+
//
// Everything is float32. The launch bounds leave a thread 128 registers, so that 512 threads fit a processor.
#include "conv2d_tile.cuh"

// out[m, n] = bias[n] + sum over d of implicit[m, d] * taps[n, d]: the forward pass, or a phase of the input gradient.
template <int BM, int BN, int BK, int TM, int TN>
__global__ void __launch_bounds__(BM / TM * (BN / TN), 512 / (BM / TM * (BN / TN)))
    conv2d_tiled_correlate(const float* __restrict__ x, const float* __restrict__ taps, const float* __restrict__ bias,
                           float* __restrict__ out, float* __restrict__ mean, float* __restrict__ squares,
                           float* __restrict__ partial, Phases phases, int relu) {
  constexpr int THREADS = BM / TM * (BN / TN), AT_ONCE = THREADS / BK;  // rows that one pass of the threads brings
  constexpr int XL = BM + 4, WL = BN + 4, LANES = BM / TM;
  constexpr int WORDS = BK * (XL + WL) > (LANES + 1) * BN ? BK * (XL + WL) : (LANES + 1) * BN;
  __shared__ __align__(16) float shared[WORDS];
  float* tile_x = shared;            // [BK][XL]
  float* tile_w = shared + BK * XL;  // [BK][WL]
  const Block<BM, BN> block(phases);
  const Correlation g = phases.of[block.phase];
  const int m0 = block.m0, n0 = block.n0, group = block.group, depth = g.depth();
  if (m0 >= g.pixels()) return;  // phases differ in size

  const Share share((depth + BK - 1) / BK);
  const int end_of_share = min(depth, (share.begin + share.count) * BK);
  const int d = threadIdx.x % BK, r = threadIdx.x / BK;
  Column column(share.begin * BK + d, g);
  __shared__ Row rows[BM];
  for (int i = threadIdx.x; i < BM; i += THREADS) rows[i] = Row(m0 + i, group, g);
  __syncthreads();
  const float* weight = taps + g.taps_begin + (size_t)group * g.outputs * depth;

  const int ty = threadIdx.x / (BN / TN), tx = threadIdx.x % (BN / TN);
  float sum[TM][TN] = {};
  for (int d0 = share.begin * BK; d0 < end_of_share; d0 += BK, column.advance(BK, g)) {
    const Away away(column, g);
#pragma unroll
    for (int i = 0; i < BM / AT_ONCE; i++) {
      int at = rows[r + i * AT_ONCE].at(away, g);
      tile_x[d * XL + r + i * AT_ONCE] = at < 0 ? 0.f : x[at];
    }
#pragma unroll
    for (int i = 0; i < BN / AT_ONCE; i++) {
      int n = n0 + r + i * AT_ONCE;
      bool inside = n < g.outputs && d0 + d < depth;
      tile_w[d * WL + r + i * AT_ONCE] = inside ? weight[(size_t)n * depth + d0 + d] : 0.f;
    }
    __syncthreads();  // the tiles are filled
#pragma unroll
    for (int k = 0; k < BK; k++) {
      float a[TM], b[TN];
#pragma unroll
      for (int i = 0; i < TM; i++) a[i] = tile_x[k * XL + ty * TM + i];
#pragma unroll
      for (int j = 0; j < TN; j++) b[j] = tile_w[k * WL + tx * TN + j];
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sum[i][j] += a[i] * b[j];
    }
    __syncthreads();  // nobody reads them any more
  }
  const auto row_of = [=](int i) { return ty * TM + i; };
  const auto output_of = [=](int j) { return tx * TN + j; };
  if (partial) return write_partial(sum, row_of, output_of, block, partial, g);
  const Epilogue end{bias, relu, mean, squares};
  finish<float>(sum, output_of, block, end, g);
#pragma unroll
  for (int i = 0; i < TM; i++) {
    int m = m0 + row_of(i);
    if (m >= g.pixels()) continue;
    float* to = out + begin_of(m, g) + group * g.outputs;
#pragma unroll
    for (int j = 0; j < TN; j++)
      if (n0 + output_of(j) < g.outputs) to[n0 + output_of(j)] = sum[i][j];
  }
  if (mean) write_statistics<BM, BN, LANES>(sum, row_of, output_of, ty, block, end, g, shared);
}

// partial[split, group, o, d] = sum over the split's pixels m of dy[m, o] * implicit[m, d]. There are far more pixels
// than weights: `splits` blocks share them for each tile, and conv2d_sum_splits adds what they found.
// Blocks: x the outputs, y the depth, z = group * splits + split.
template <int BM, int BN, int BK, int TM, int TN>
__global__ void __launch_bounds__(BM / TM * (BN / TN), 512 / (BM / TM * (BN / TN)))
    conv2d_tiled_dweight(const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ partial,
                         Correlation g, int splits) {
  constexpr int THREADS = BM / TM * (BN / TN), DYL = BM + 4, XL = BN + 4;
  __shared__ __align__(16) float tile_dy[BK * DYL];
  __shared__ __align__(16) float tile_x[BK * XL];
  const PixelShare<BK> share(splits, g);
  const int o0 = blockIdx.x * BM, d0 = blockIdx.y * BN, depth = g.depth();

  const int ty = threadIdx.x / (BN / TN), tx = threadIdx.x % (BN / TN);
  float sum[TM][TN] = {};
  for (int m0 = share.begin; m0 < share.end; m0 += BK) {
    for (int n = threadIdx.x; n < BK * BM; n += THREADS) {
      int o = o0 + n % BM, m = m0 + n / BM;
      bool inside = o < g.outputs && m < share.end;
      size_t at = ((size_t)m * g.groups + share.group) * g.outputs + o;
      tile_dy[n / BM * DYL + n % BM] = inside ? dy[at] : 0.f;
    }
    for (int n = threadIdx.x; n < BK * BN; n += THREADS) {
      int m = m0 + n / BN;
      int at = Row(m < share.end ? m : g.pixels(), share.group, g).at(Away(Column(d0 + n % BN, g), g), g);
      tile_x[n / BN * XL + n % BN] = at < 0 ? 0.f : x[at];
    }
    __syncthreads();  // the tiles are filled
#pragma unroll
    for (int k = 0; k < BK; k++) {
      float a[TM], b[TN];
#pragma unroll
      for (int i = 0; i < TM; i++) a[i] = tile_dy[k * DYL + ty * TM + i];
#pragma unroll
      for (int j = 0; j < TN; j++) b[j] = tile_x[k * XL + tx * TN + j];
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sum[i][j] += a[i] * b[j];
    }
    __syncthreads();  // nobody reads them any more
  }
  float* to = partial + ((size_t)share.split * g.groups + share.group) * g.outputs * depth;
#pragma unroll
  for (int i = 0; i < TM; i++)
#pragma unroll
    for (int j = 0; j < TN; j++) {
      int o = o0 + ty * TM + i, d = d0 + tx * TN + j;
      if (o < g.outputs && d < depth) to[(size_t)o * depth + d] = sum[i][j];
    }
}

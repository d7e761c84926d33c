// Convolution: the statistics that write_tile (conv2d_tile.cuh) left for each tile, merged.
#include "conv2d.cuh"
#include "moments.cuh"
#include "parts.cuh"

// Mean and biased variance of each channel from those of the tiles. Tile number p of a phase covers up to `tile` of its
// pixels. A thread takes eight tiles around their common mean before it combines them with others: one division for
// all.
__global__ void __launch_bounds__(PART_CHANNELS * PART_THREADS) conv2d_merge_statistics(
    const float* __restrict__ means, const float* __restrict__ squares, float* __restrict__ mean,
    float* __restrict__ variance, Phases phases, int parts_of_phase, int tile, int channels) {
  int c = channel_of_parts();
  Moments m = {0.f, 0.f, 0.f};
  for (int phase = 0; c < channels && phase < phases.count; phase++) {
    int pixels = phases.of[phase].pixels(), tiles = (pixels + tile - 1) / tile;
    for (int part = threadIdx.y; part < tiles; part += PART_THREADS * PARTS_AT_ONCE) {
      float count[PARTS_AT_ONCE], middle[PARTS_AT_ONCE], around[PARTS_AT_ONCE];
#pragma unroll
      for (int i = 0; i < PARTS_AT_ONCE; i++) {
        int p = part + i * PART_THREADS;
        size_t at = (size_t)(phase * parts_of_phase + p) * channels + c;
        count[i] = p < tiles ? (float)min(tile, pixels - p * tile) : 0.f;
        middle[i] = p < tiles ? means[at] : 0.f;
        around[i] = p < tiles ? squares[at] : 0.f;
      }
      Moments some = {0.f, 0.f, 0.f};
#pragma unroll
      for (int i = 0; i < PARTS_AT_ONCE; i++) some.count += count[i], some.mean += count[i] * middle[i];
      some.mean /= some.count;
#pragma unroll
      for (int i = 0; i < PARTS_AT_ONCE; i++) {
        float delta = middle[i] - some.mean;
        some.squares += around[i] + count[i] * delta * delta;
      }
      m = combined(m, some);
    }
  }
  m = put_together(m, combined);
  if (threadIdx.y || c >= channels) return;
  mean[c] = m.mean;
  variance[c] = m.squares / m.count;
}

// Convolution: the statistics that write_tile (conv2d_tile.cuh) left for each tile, merged.
#include "conv2d.cuh"

// Mean and biased variance of each channel from those of the tiles (Chan, Golub and LeVeque 1979), in a fixed order:
//
//     delta = mean_b - mean_a, mean = mean_a + delta * n_b / n, squares = squares_a + squares_b + delta^2 n_a n_b / n
//
// Tile number p of a phase covers up to `tile` of its pixels. Blocks of 8 channels x 128 threads, few channels so that
// even 64 make blocks for several processors. A thread reads 8 tiles at a time, each 128 after the other, and takes
// them around their common mean before it merges them: so many loads are under way at once, for one division. What the
// threads found is then merged two by two.
constexpr int CHANNELS = 8, HEIGHT = 128, AT_ONCE = 8;

struct Moments {
  float count, mean, squares;

  __device__ void merge(const Moments& other) {
    if (other.count == 0.f) return;
    float total = count + other.count, delta = other.mean - mean, share = other.count / total;
    mean += delta * share;
    squares += other.squares + delta * delta * (count * share);
    count = total;
  }
};

__global__ void __launch_bounds__(CHANNELS * HEIGHT) conv2d_merge_statistics(
    const float* __restrict__ means, const float* __restrict__ squares, float* __restrict__ mean,
    float* __restrict__ variance, Phases phases, int parts_of_phase, int tile, int channels) {
  __shared__ Moments found[HEIGHT][CHANNELS];
  int c = blockIdx.x * CHANNELS + threadIdx.x;
  Moments m = {0.f, 0.f, 0.f};
  for (int phase = 0; c < channels && phase < phases.count; phase++) {
    int pixels = phases.of[phase].pixels(), tiles = (pixels + tile - 1) / tile;
    for (int part = threadIdx.y; part < tiles; part += HEIGHT * AT_ONCE) {
      float count[AT_ONCE], middle[AT_ONCE], around[AT_ONCE];
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        int p = part + i * HEIGHT;
        size_t at = (size_t)(phase * parts_of_phase + p) * channels + c;
        count[i] = p < tiles ? (float)min(tile, pixels - p * tile) : 0.f;
        middle[i] = p < tiles ? means[at] : 0.f;
        around[i] = p < tiles ? squares[at] : 0.f;
      }
      Moments some = {0.f, 0.f, 0.f};
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) some.count += count[i], some.mean += count[i] * middle[i];
      some.mean /= some.count;
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        float delta = middle[i] - some.mean;
        some.squares += around[i] + count[i] * delta * delta;
      }
      m.merge(some);
    }
  }
  found[threadIdx.y][threadIdx.x] = m;
  for (int half = HEIGHT / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) found[threadIdx.y][threadIdx.x].merge(found[threadIdx.y + half][threadIdx.x]);
  }
  if (threadIdx.y || c >= channels) return;
  m = found[0][threadIdx.x];
  mean[c] = m.mean;
  variance[c] = m.squares / m.count;
}

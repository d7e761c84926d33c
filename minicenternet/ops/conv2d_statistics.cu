// Convolution: the statistics that write_tile (conv2d_tile.cuh) left for each tile, merged.
#include "conv2d.cuh"

// Mean and biased variance of each channel from those of the tiles (Chan, Golub and LeVeque 1979), in a fixed order:
//
//     delta = mean_b - mean_a, mean = mean_a + delta * n_b / n, squares = squares_a + squares_b + delta^2 n_a n_b / n
//
// Tile number p of a phase covers up to `tile` of its pixels. Blocks of 32 channels x 8 threads, which first merge
// every eighth tile each.
struct Moments {
  float count, mean, squares;

  __device__ void merge(float n, float other_mean, float other_squares) {
    if (n == 0.f) return;
    float total = count + n, delta = other_mean - mean;
    mean += delta * (n / total);
    squares += other_squares + delta * delta * (count * (n / total));
    count = total;
  }
};

__global__ void conv2d_merge_statistics(const float* __restrict__ means, const float* __restrict__ squares,
                                        float* __restrict__ mean, float* __restrict__ variance, Phases phases,
                                        int parts_of_phase, int tile, int channels) {
  __shared__ Moments found[8][32];
  int c = blockIdx.x * 32 + threadIdx.x;
  Moments m = {0.f, 0.f, 0.f};
  if (c < channels)
    for (int part = threadIdx.y; part < phases.count * parts_of_phase; part += 8) {
      int left = phases.of[part / parts_of_phase].pixels() - part % parts_of_phase * tile;
      size_t at = (size_t)part * channels + c;
      if (left > 0) m.merge((float)min(left, tile), means[at], squares[at]);
    }
  found[threadIdx.y][threadIdx.x] = m;
  __syncthreads();
  if (threadIdx.y || c >= channels) return;
  for (int i = 1; i < 8; i++) {
    Moments other = found[i][threadIdx.x];
    m.merge(other.count, other.mean, other.squares);
  }
  mean[c] = m.mean;
  variance[c] = m.squares / m.count;
}

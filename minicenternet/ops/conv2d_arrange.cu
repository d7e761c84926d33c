// Convolution: the small kernels around the implicit GEMMs.
#include "conv2d.cuh"
#include "tensor_cores.cuh"

// taps[n, k, l, c] = weight of output n and channel c (of one group) at the tap that (k, l) is in this phase: the depth
// becomes contiguous. Channels from `given` on are zeros, so that their number suits the copies. TF32: round as well.
// The weight's strides tell the forward pass from the input gradient, where outputs and channels change roles.
// Blocks: x the elements, y the phases.
template <class T, bool TF32>
__global__ void conv2d_arrange(const T* __restrict__ weight, T* __restrict__ taps, Phases phases, int given,
                               int group_stride, int output_stride, int channel_stride, int kernel_width) {
  const Correlation g = phases.of[blockIdx.y];
  int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= g.groups * g.outputs * g.depth()) return;
  Column column(n, g);  // counted from the first tap on, so that k runs on from output to output
  int output = column.k / g.y.taps, u = g.tap_y + g.tap_step_y * (column.k % g.y.taps);
  int v = g.tap_x + g.tap_step_x * column.l, group = output / g.outputs;
  int from = group * group_stride + output % g.outputs * output_stride + column.c * channel_stride + u * kernel_width + v;
  T value = column.c < given ? weight[from] : T(0.f);
  if (TF32) value = T(__uint_as_float(round_to_tf32(__float_as_uint((float)value))));
  taps[g.taps_begin + n] = value;
}

// padded[m, c] = x[m, c] for c < channels, else 0
template <class T>
__global__ void conv2d_pad_channels(const T* __restrict__ x, T* __restrict__ padded, long long pixels, int channels,
                                    int padded_channels) {
  long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= pixels * padded_channels) return;
  int c = n % padded_channels;
  padded[n] = c < channels ? x[n / padded_channels * channels + c] : T(0.f);
}

// dweight[o, c, u, v] = sum over the splits, in their order, of partial[split, o, u, v, c]; `outputs` and `channels` (of
// one group) may be fewer than the padded ones of the partial sums.
__global__ void conv2d_sum_splits(const float* __restrict__ partial, float* __restrict__ dweight, int splits, int groups,
                                  int outputs, int padded_outputs, int taps, int channels, int padded_channels) {
  int n = blockIdx.x * blockDim.x + threadIdx.x, size = groups * padded_outputs * taps * padded_channels;
  if (n >= size) return;
  int c = n % padded_channels, tap = n / padded_channels % taps, o = n / padded_channels / taps;
  int group = o / padded_outputs;
  o %= padded_outputs;
  if (c >= channels || o >= outputs) return;
  float sum = 0.f;
  for (int s = 0; s < splits; s++) sum += partial[(size_t)s * size + n];
  dweight[((size_t)(group * outputs + o) * channels + c) * taps + tap] = sum;
}

// Mean and biased variance of each channel from those of the tiles (Chan, Golub and LeVeque 1979), in a fixed order:
//
//     delta = mean_b - mean_a     mean = mean_a + delta * n_b / n     squares = squares_a + squares_b + delta^2 n_a n_b / n
//
// Tile number p of a phase covers up to `tile` of its pixels. Blocks of 32 channels x 8 threads, which first merge every
// eighth tile each.
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
                                        float* __restrict__ mean, float* __restrict__ variance, Phases phases, int count,
                                        int parts_of_phase, int tile, int channels) {
  __shared__ Moments found[8][32];
  int c = blockIdx.x * 32 + threadIdx.x;
  Moments m = {0.f, 0.f, 0.f};
  if (c < channels)
    for (int part = threadIdx.y; part < count * parts_of_phase; part += 8) {
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

// Convolution: the small kernels around the implicit GEMMs.
#include "conv2d.cuh"
#include "numbers.cuh"
#include "tensor_cores.cuh"

// taps[n, k, l, c] = weight of output n and channel c (of one group) at the tap that (k, l) is in this phase: the depth
// becomes contiguous, and float32 what the correlation reads, T. Channels from `given` on are zeros, so that their
// number suits the copies. TF32: round as well.
// The weight's strides tell the forward pass from the input gradient, where outputs and channels change roles.
// Blocks: x the elements, y the phases.
template <class T, bool TF32>
__global__ void conv2d_arrange(const float* __restrict__ weight, T* __restrict__ taps, Phases phases, int given,
                               int group_stride, int output_stride, int channel_stride, int kernel_width) {
  const Correlation g = phases.of[blockIdx.y];
  int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= g.groups * g.outputs * g.depth()) return;
  Column column(n, g);  // counted from the first tap on, so that k runs on from output to output
  int output = column.k / g.y.taps, u = g.tap_y + g.tap_step_y * (column.k % g.y.taps);
  int v = g.tap_x + g.tap_step_x * column.l, group = output / g.outputs;
  int from = group * group_stride + output % g.outputs * output_stride + column.c * channel_stride;
  from += u * kernel_width + v;
  float value = column.c < given ? weight[from] : 0.f;
  if (TF32) value = __uint_as_float(round_to_tf32(__float_as_uint(value)));
  taps[g.taps_begin + n] = T(value);
}

// padded[m, c] = x[m, c] for c < channels, else 0; a thread writes 16 bytes of a pixel.
template <class T>
__global__ void conv2d_pad_channels(const T* __restrict__ x, T* __restrict__ padded, int count, int channels,
                                    int padded_channels) {
  constexpr int N = 16 / sizeof(T);  // padded_channels is a multiple of it
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  int pixel = i / padded_channels, first = i - pixel * padded_channels;
  Pack<T, N> wide;
#pragma unroll
  for (int k = 0; k < N; k++) wide.at[k] = first + k < channels ? x[pixel * channels + first + k] : T(0.f);
  *(Pack<T, N>*)(padded + i) = wide;
}

// dweight[o, c, u, v] = sum over the splits, in their order, of partial[split, o, u, v, c]; `outputs` and `channels`
// (of one group) may be fewer than the padded ones of the partial sums.
__global__ void conv2d_sum_splits(const float* __restrict__ partial, float* __restrict__ dweight, int splits,
                                  int groups, int outputs, int padded_outputs, int taps, int channels,
                                  int padded_channels) {
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

// out[i] = bias + sum over the splits of a correlation's depth, in their order, of partial[split, i]
template <class T>
__global__ void conv2d_finish_splits(const float* __restrict__ partial, const float* __restrict__ bias,
                                     T* __restrict__ out, int splits, int size, int channels, int relu) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  float sum = 0.f;
  for (int s = 0; s < splits; s++) sum += partial[(size_t)s * size + i];
  if (bias) sum += bias[i % channels];
  out[i] = T(relu && sum < 0 ? 0.f : sum);  // NaN stays
}

// Convolution: the small kernels around the implicit GEMMs.
#include "conv2d.cuh"
#include "numbers.cuh"
#include "tensor_cores.cuh"

// taps[n, k, l, c] = weight of output n and channel c (of one group) at the tap that (k, l) is in this phase: the depth
// becomes contiguous, and float32 what the correlation reads, T. Channels from `given` on are zeros, so that their
// number suits the copies. TF32: round as well.
// The weight's strides tell the forward pass from the input gradient, where outputs and channels change roles.
// A thread takes all taps of an output and a channel: they lie side by side in the weight, and those of neighbouring
// channels are neighbours in each tap that is written. Blocks: x the pairs, y the phases.
template <class T, bool TF32>
__global__ void conv2d_arrange(const float* __restrict__ weight, T* __restrict__ taps, Phases phases, int given,
                               int group_stride, int output_stride, int channel_stride, int kernel_width) {
  const Correlation g = phases.of[blockIdx.y];
  int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= g.groups * g.outputs * g.channels) return;
  int output = n / g.channels, c = n % g.channels, group = output / g.outputs;
  const float* from = weight + group * group_stride + output % g.outputs * output_stride + c * channel_stride;
  T* to = taps + g.taps_begin + output * g.depth() + c;
  for (int k = 0; k < g.y.taps; k++) {
    const float* row = from + (g.tap_y + g.tap_step_y * k) * kernel_width + g.tap_x;
#pragma unroll 4
    for (int l = 0; l < g.x.taps; l++, to += g.channels) {
      float value = c < given ? row[g.tap_step_x * l] : 0.f;
      if (TF32) value = __uint_as_float(round_to_tf32(__float_as_uint(value)));
      *to = T(value);
    }
  }
}

// padded[m, c] = x[m, c] for c < channels, else 0, as T; a thread writes 16 bytes of a pixel.
template <class From, class T>
__global__ void conv2d_pad_channels(const From* __restrict__ x, T* __restrict__ padded, int count, int channels,
                                    int padded_channels) {
  constexpr int N = 16 / sizeof(T);  // padded_channels is a multiple of it
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  int pixel = i / padded_channels, first = i - pixel * padded_channels;
  Pack<T, N> wide;
#pragma unroll
  for (int k = 0; k < N; k++) wide.at[k] = T(first + k < channels ? (float)x[pixel * channels + first + k] : 0.f);
  *(Pack<T, N>*)(padded + i) = wide;
}

// The sum of partial[0], partial[size], ... in their order. A small weight has many splits and few threads, each of which
// therefore has many loads under way.
__device__ __forceinline__ float sum_of_splits(const float* __restrict__ partial, int splits, int size) {
  constexpr int AT_ONCE = 16;
  float sum = 0.f;
  for (int first = 0; first < splits; first += AT_ONCE) {
    float some[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) some[i] = first + i < splits ? partial[(size_t)(first + i) * size] : 0.f;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) sum += some[i];
  }
  return sum;
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
  dweight[((size_t)(group * outputs + o) * channels + c) * taps + tap] = sum_of_splits(partial + n, splits, size);
}

// out[i] = bias + sum over the splits of a correlation's depth, in their order, of partial[split, i]
template <class T>
__global__ void conv2d_finish_splits(const float* __restrict__ partial, const float* __restrict__ bias,
                                     T* __restrict__ out, int splits, int size, int channels, int relu) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  float sum = sum_of_splits(partial + i, splits, size);
  if (bias) sum += bias[i % channels];
  out[i] = T(relu && sum < 0 ? 0.f : sum);  // NaN stays
}

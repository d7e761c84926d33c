// The sum of each channel over all pixels:  sums[c] = sum over r of x[r, c],   x (rows, channels), sums float32.
//
//   channel_sum_parts    of a part of the rows
//   channel_sum_total    of all parts
//
// The shape alone decides in which order.
#include "numbers.cuh"
#include "row_blocks.cuh"

// channels is a multiple of N.
template <class T, int N>
__global__ void channel_sum_parts(const T* __restrict__ x, float* __restrict__ parts, int rows, int channels,
                                  int rows_of_part) {
  int channel = first_channel<N>(), first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  float sum[N] = {};
  #pragma unroll 4
  for (int row = first + threadIdx.y; channel < channels && row < last; row += blockDim.y) {
    auto in = *(const Pack<T, N>*)(x + row * channels + channel);
    #pragma unroll
    for (int k = 0; k < N; k++) sum[k] += (float)in.at[k];
  }
  float all = sum_over_rows(sum);
  int own = own_channel<N>(channels);
  if (own >= 0) parts[blockIdx.y * channels + own] = all;
}

__global__ void channel_sum_total(const float* __restrict__ parts, float* __restrict__ sums, int channels, int count) {
  int channel = first_channel<1>();
  float sum[1] = {0};
  #pragma unroll 4
  for (int part = threadIdx.y; channel < channels && part < count; part += blockDim.y)
    sum[0] += parts[part * channels + channel];
  float all = sum_over_rows(sum);
  if (threadIdx.y == 0 && channel < channels) sums[channel] = all;
}

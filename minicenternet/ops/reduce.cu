// The sum of each channel over all pixels:  sums[c] = sum over r of x[r, c],   x (rows, channels), sums float32.
//
//   channel_sum_parts    of a part of the rows
//   channel_sum_total    of all parts
//
// The shape alone decides in which order.
#include "numbers.cuh"
#include "parts.cuh"
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

__global__ void __launch_bounds__(PART_CHANNELS * PART_THREADS) channel_sum_total(
    const float* __restrict__ parts, float* __restrict__ sums, int channels, int count) {
  float sum = sums_of_parts<1>({parts}, count, channels).of[0];
  if (threadIdx.y == 0 && channel_of_parts() < channels) sums[channel_of_parts()] = sum;
}

// The sum of each channel over all pixels:  sums[c] = sum over r of x[r, c],   x (rows, channels), sums float32.
//
//   channel_sum_parts    of a part of the rows
//   channel_sum_total    of all parts
//
// The shape alone decides in which order. A block is 32 channels wide, so that a warp reads side by side, and 8 high.
#include "numbers.cuh"

constexpr int LANES = 32, HEIGHT = 8;

// Add the 8 of a channel from top to bottom; the result is thread 0's (of threadIdx.y).
__device__ float summed_in_block(float own) {
  __shared__ float all[HEIGHT][LANES];
  all[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  for (int i = 1; threadIdx.y == 0 && i < HEIGHT; i++) own += all[i][threadIdx.x];
  return own;
}

// Block (i, part): channels 32 i .. 32 i + 31 of the rows of that part.
template <class T>
__global__ void channel_sum_parts(const T* __restrict__ x, float* __restrict__ parts, int rows, int channels,
                                  int rows_of_part) {
  int channel = blockIdx.x * LANES + threadIdx.x;
  int first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  float sum = 0;
  #pragma unroll 8
  for (int row = first + threadIdx.y; channel < channels && row < last; row += HEIGHT)
    sum += (float)x[row * channels + channel];
  sum = summed_in_block(sum);
  if (threadIdx.y == 0 && channel < channels) parts[blockIdx.y * channels + channel] = sum;
}

__global__ void channel_sum_total(const float* __restrict__ parts, float* __restrict__ sums, int channels, int count) {
  int channel = blockIdx.x * LANES + threadIdx.x;
  float sum = 0;
  for (int part = threadIdx.y; channel < channels && part < count; part += HEIGHT)
    sum += parts[part * channels + channel];
  sum = summed_in_block(sum);
  if (threadIdx.y == 0 && channel < channels) sums[channel] = sum;
}

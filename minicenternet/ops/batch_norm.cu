// Batch normalisation:  y = γ (x - μ) / √(σ² + ε) + β (+ residual) (then ReLU),  per channel of x (rows, channels)
//
//   batch_norm_statistics    μ and Σ(x - μ)² of a part of the rows
//   batch_norm_combine       of all parts: μ, σ²
//   batch_norm_normalise     y, and the running averages
//   batch_norm_sums          with g = dy where y > 0: Σ g and Σ g (x - μ) of a part of the rows
//   batch_norm_gradients     of all parts: dβ = Σ g, dγ = Σ g x̂
//   batch_norm_backward      dx = γ/√(σ²+ε) · (g - dβ/n - x̂ dγ/n) while training, γ/√(σ²+ε) · g with running averages
//
// Statistics never subtract large numbers: a thread takes the squares of a few rows around their own mean, and what two
// threads found is combined as in moments.cuh, in an order that the shape alone decides. How blocks lie over the rows:
// see row_blocks.cuh; over the parts: parts.cuh. What all rows share, a thread works out before its first one.
#include "moments.cuh"
#include "numbers.cuh"
#include "parts.cuh"
#include "row_blocks.cuh"

constexpr int AT_ONCE = 8, RESIDENT = 4;  // RESIDENT: blocks that must fit a processor, so that many loads are under way

// Combine what the rows of threads found of a channel from top to bottom; the result is thread 0's (of threadIdx.y).
__device__ Moments combined_over_rows(Moments own) {
  __shared__ Moments all[ROW_THREADS];
  all[threadIdx.y * blockDim.x + threadIdx.x] = own;
  __syncthreads();
  for (int y = 1; threadIdx.y == 0 && y < blockDim.y; y++) own = combined(own, all[y * blockDim.x + threadIdx.x]);
  return own;
}

template <class T>
__global__ void batch_norm_statistics(const T* __restrict__ x, float* __restrict__ means, float* __restrict__ squares,
                                      int rows, int channels, int rows_of_part) {
  int channel = first_channel<1>(), height = blockDim.y;
  int first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  Moments moments = {0, 0, 0};
  for (int row = first + threadIdx.y; channel < channels && row < last; row += height * AT_ONCE) {
    float values[AT_ONCE], sum = 0, around_mean = 0;
    int count = min(AT_ONCE, (last - row + height - 1) / height);
    #pragma unroll
    for (int i = 0; i < AT_ONCE; i++) values[i] = i < count ? (float)x[(row + i * height) * channels + channel] : 0;
    #pragma unroll
    for (int i = 0; i < AT_ONCE; i++) sum += values[i];
    float mean = sum / count;
    #pragma unroll
    for (int i = 0; i < AT_ONCE; i++) around_mean += i < count ? (values[i] - mean) * (values[i] - mean) : 0;
    moments = combined(moments, {(float)count, mean, around_mean});
  }
  moments = combined_over_rows(moments);
  if (threadIdx.y == 0 && channel < channels) {
    means[blockIdx.y * channels + channel] = moments.mean;
    squares[blockIdx.y * channels + channel] = moments.squares;
  }
}

__global__ void __launch_bounds__(PART_CHANNELS * PART_THREADS) batch_norm_combine(
    const float* __restrict__ means, const float* __restrict__ squares, float* __restrict__ mean,
    float* __restrict__ variance, int rows, int channels, int parts, int rows_of_part) {
  int channel = channel_of_parts();
  Moments moments = {0, 0, 0};
  for (int part = threadIdx.y; channel < channels && part < parts; part += PART_THREADS) {
    int count = min(rows_of_part, rows - part * rows_of_part), at = part * channels + channel;
    moments = combined(moments, {(float)count, means[at], squares[at]});
  }
  moments = put_together(moments, combined);
  if (threadIdx.y > 0 || channel >= channels) return;
  mean[channel] = moments.mean;
  variance[channel] = moments.squares / rows;
}

// A batch that overflowed leaves them as they are, since in fp16 its step is skipped, and another follows.
__device__ void follow(float& running_mean, float& running_var, float mean, float unbiased, float momentum) {
  if (!isfinite(mean) || !isfinite(unbiased)) return;
  running_mean += momentum * (mean - running_mean);
  running_var += momentum * (unbiased - running_var);
}

// What backward must find again to the last bit, to know where ReLU let y pass: the rounding is said, not left open.
__device__ __forceinline__ float normalised(float x, float centre, float scale, float shift) {
  return fmaf(x - centre, scale, shift);
}

// channels is a multiple of N. While training, the first part's blocks take the batch into the running averages, its
// variance times n/(n - 1), `unbiased`, and count it; else running_mean, running_var and batches are null.
template <class T, int N>
__global__ void batch_norm_normalise(const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y,
                                     const float* __restrict__ mean, const float* __restrict__ variance,
                                     const float* __restrict__ weight, const float* __restrict__ bias,
                                     float* __restrict__ running_mean, float* __restrict__ running_var,
                                     long long* __restrict__ batches, int rows, int channels, int rows_of_part,
                                     float epsilon, bool relu, float unbiased, float momentum) {
  if (batches && blockIdx.x + blockIdx.y + thread_of_block() == 0) ++*batches;
  float shared[3][N];
  spread_over_rows(channels, shared, [&](int c) -> Shared<3> {
    if (running_mean && blockIdx.y == 0)
      follow(running_mean[c], running_var[c], mean[c], variance[c] * unbiased, momentum);
    return {mean[c], weight[c] * rsqrtf(variance[c] + epsilon), bias[c]};
  });
  auto& [centre, scale, shift] = shared;
  int channel = first_channel<N>(), first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  #pragma unroll 2
  for (int row = first + threadIdx.y; channel < channels && row < last; row += blockDim.y) {
    int i = row * channels + channel;
    auto in = *(const Pack<T, N>*)(x + i);
    Pack<T, N> added, out;
    if (residual) added = *(const Pack<T, N>*)(residual + i);
    #pragma unroll
    for (int k = 0; k < N; k++) {
      float value = normalised((float)in.at[k], centre[k], scale[k], shift[k]);
      if (residual) value += (float)added.at[k];
      out.at[k] = (T)(relu && value < 0 ? 0.0f : value);
    }
    *(Pack<T, N>*)(y + i) = out;
  }
}

// AGAIN: whether to find again where ReLU let y pass, since no residual was added to what x tells, and x is read anyway.
// Otherwise y is null where there was no ReLU.
template <class T, int N, bool AGAIN>
__global__ void __launch_bounds__(ROW_THREADS, RESIDENT) batch_norm_sums(
    const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x, const float* __restrict__ mean,
    const float* __restrict__ variance, const float* __restrict__ weight, const float* __restrict__ bias,
    float* __restrict__ sums, float* __restrict__ products, int rows, int channels, int rows_of_part, float epsilon) {
  float shared[3][N], sum[N] = {}, product[N] = {};
  spread_over_rows(channels, shared, [&](int c) -> Shared<3> {
    return {mean[c], weight[c] * rsqrtf(variance[c] + epsilon), bias[c]};
  });
  auto& [centre, scale, shift] = shared;
  int channel = first_channel<N>(), first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  for (int row = first + threadIdx.y; channel < channels && row < last; row += blockDim.y) {
    int i = row * channels + channel;
    auto in = *(const Pack<T, N>*)(x + i), gradient = *(const Pack<T, N>*)(dy + i);
    Pack<T, N> rectified;
    if (!AGAIN && y) rectified = *(const Pack<T, N>*)(y + i);
    #pragma unroll
    for (int k = 0; k < N; k++) {
      bool passed = y == nullptr || (float)rectified.at[k] > 0;
      if (AGAIN) passed = (float)(T)normalised((float)in.at[k], centre[k], scale[k], shift[k]) > 0;
      float g = passed ? (float)gradient.at[k] : 0;
      sum[k] += g;
      product[k] += g * ((float)in.at[k] - centre[k]);
    }
  }
  float all = sum_over_rows(sum), all_with_x = sum_over_rows(product);
  int own = own_channel<N>(channels);
  if (own < 0) return;
  sums[blockIdx.y * channels + own] = all;
  products[blockIdx.y * channels + own] = all_with_x;
}

__global__ void __launch_bounds__(PART_CHANNELS * PART_THREADS) batch_norm_gradients(
    const float* __restrict__ sums, const float* __restrict__ products, const float* __restrict__ variance,
    float* __restrict__ dweight, float* __restrict__ dbias, int channels, int parts, float epsilon) {
  int channel = channel_of_parts();
  auto [all, all_with_x] = sums_of_parts<2>({sums, products}, parts, channels).of;
  if (threadIdx.y > 0 || channel >= channels) return;
  dbias[channel] = all;
  dweight[channel] = all_with_x * rsqrtf(variance[channel] + epsilon);
}

// dx = scale · g + slope · (x - μ) + offset: the formula above, multiplied out.
// per_row is 1/n while training and 0 with running averages; dresidual is null where there was no residual.
template <class T, int N, bool AGAIN>
__global__ void __launch_bounds__(ROW_THREADS, RESIDENT) batch_norm_backward(
    const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x, T* __restrict__ dx,
    T* __restrict__ dresidual, const float* __restrict__ mean, const float* __restrict__ variance,
    const float* __restrict__ weight, const float* __restrict__ bias, const float* __restrict__ dweight,
    const float* __restrict__ dbias, int rows, int channels, int rows_of_part, float epsilon, float per_row) {
  float shared[5][N];
  spread_over_rows(channels, shared, [&](int c) -> Shared<5> {
    float inverse = rsqrtf(variance[c] + epsilon), scale = weight[c] * inverse, share = -scale * per_row;
    return {mean[c], scale, bias[c], share * dweight[c] * inverse, share * dbias[c]};
  });
  auto& [centre, scale, shift, slope, offset] = shared;
  int channel = first_channel<N>(), first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  for (int row = first + threadIdx.y; channel < channels && row < last; row += blockDim.y) {
    int i = row * channels + channel;
    auto in = *(const Pack<T, N>*)(x + i), g = *(const Pack<T, N>*)(dy + i);
    Pack<T, N> rectified, out;
    if (!AGAIN && y) rectified = *(const Pack<T, N>*)(y + i);
    #pragma unroll
    for (int k = 0; k < N; k++) {
      bool passed = y == nullptr || (float)rectified.at[k] > 0;
      if (AGAIN) passed = (float)(T)normalised((float)in.at[k], centre[k], scale[k], shift[k]) > 0;
      if (!passed) g.at[k] = (T)0.0f;
      out.at[k] = (T)(scale[k] * (float)g.at[k] + slope[k] * ((float)in.at[k] - centre[k]) + offset[k]);
    }
    *(Pack<T, N>*)(dx + i) = out;
    if (dresidual) *(Pack<T, N>*)(dresidual + i) = g;
  }
}

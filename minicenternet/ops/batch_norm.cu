// Batch normalisation:  y = γ (x - μ) / √(σ² + ε) + β (+ residual) (then ReLU),  per channel of x (rows, channels)
//
//   batch_norm_statistics    μ and Σ(x - μ)² of a part of the rows
//   batch_norm_combine       of all parts: μ, σ², and the running averages
//   batch_norm_running       the running averages, where the convolution before has found μ and σ²
//   batch_norm_normalise     y
//   batch_norm_sums          with g = dy where y > 0: Σ g and Σ g (x - μ) of a part of the rows
//   batch_norm_gradients     of all parts: dβ = Σ g, dγ = Σ g x̂
//   batch_norm_backward      dx = γ/√(σ²+ε) · (g - dβ/n - x̂ dγ/n) while training, γ/√(σ²+ε) · g with running averages
//
// Statistics never subtract large numbers: a thread takes the squares of a few rows around their own mean, and what two
// threads found is combined as (Chan et al. 1979)
//
//   n = n₁ + n₂,   μ = μ₁ + (μ₂ - μ₁) n₂/n,   Σ² = Σ₁² + Σ₂² + (μ₂ - μ₁)² n₁n₂/n
//
// in an order that the shape alone decides. A block is 32 channels wide, so that a warp reads side by side, and 8 high.
#include "numbers.cuh"

constexpr int LANES = 32, HEIGHT = 8, AT_ONCE = 8;

struct Moments {
  float count, mean, squares;  // squares: the sum of (x - mean)²
};

__device__ Moments combined(Moments a, Moments b) {
  if (b.count == 0) return a;
  float count = a.count + b.count, apart = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

// Combine the 8 of a channel from top to bottom; the result is thread 0's (of threadIdx.y).
__device__ Moments combined_in_block(Moments own) {
  __shared__ Moments all[HEIGHT][LANES];
  all[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  for (int i = 1; threadIdx.y == 0 && i < HEIGHT; i++) own = combined(own, all[i][threadIdx.x]);
  return own;
}

// Block (i, part): channels 32 i .. 32 i + 31 of the rows of that part.
template <class T>
__global__ void batch_norm_statistics(const T* __restrict__ x, float* __restrict__ means, float* __restrict__ squares,
                                      int rows, int channels, int rows_of_part) {
  int channel = blockIdx.x * LANES + threadIdx.x;
  int first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  Moments moments = {0, 0, 0};
  for (int row = first + threadIdx.y; channel < channels && row < last; row += HEIGHT * AT_ONCE) {
    float values[AT_ONCE], sum = 0, around_mean = 0;
    int count = min(AT_ONCE, (last - row + HEIGHT - 1) / HEIGHT);
    #pragma unroll
    for (int i = 0; i < AT_ONCE; i++) values[i] = i < count ? (float)x[(row + i * HEIGHT) * channels + channel] : 0;
    #pragma unroll
    for (int i = 0; i < AT_ONCE; i++) sum += values[i];
    float mean = sum / count;
    #pragma unroll
    for (int i = 0; i < AT_ONCE; i++) around_mean += i < count ? (values[i] - mean) * (values[i] - mean) : 0;
    moments = combined(moments, {(float)count, mean, around_mean});
  }
  moments = combined_in_block(moments);
  if (threadIdx.y == 0 && channel < channels) {
    means[blockIdx.y * channels + channel] = moments.mean;
    squares[blockIdx.y * channels + channel] = moments.squares;
  }
}

// A batch that overflowed leaves them as they are, since in fp16 its step is skipped, and another follows.
__device__ void follow(float& running_mean, float& running_var, float mean, float unbiased, float momentum) {
  if (!isfinite(mean) || !isfinite(unbiased)) return;
  running_mean += momentum * (mean - running_mean);
  running_var += momentum * (unbiased - running_var);
}

__global__ void batch_norm_combine(const float* __restrict__ means, const float* __restrict__ squares,
                                   float* __restrict__ mean, float* __restrict__ variance,
                                   float* __restrict__ running_mean, float* __restrict__ running_var, int rows,
                                   int channels, int parts, int rows_of_part, float momentum) {
  int channel = blockIdx.x * LANES + threadIdx.x;
  Moments moments = {0, 0, 0};
  for (int part = threadIdx.y; channel < channels && part < parts; part += HEIGHT) {
    int count = min(rows_of_part, rows - part * rows_of_part), at = part * channels + channel;
    moments = combined(moments, {(float)count, means[at], squares[at]});
  }
  moments = combined_in_block(moments);
  if (threadIdx.y > 0 || channel >= channels) return;
  mean[channel] = moments.mean;
  variance[channel] = moments.squares / rows;
  follow(running_mean[channel], running_var[channel], moments.mean, moments.squares / (rows - 1), momentum);
}

__global__ void batch_norm_running(const float* __restrict__ mean, const float* __restrict__ variance,
                                   float* __restrict__ running_mean, float* __restrict__ running_var, int rows,
                                   int channels, float momentum) {
  int channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  float unbiased = variance[channel] * ((float)rows / (rows - 1));
  follow(running_mean[channel], running_var[channel], mean[channel], unbiased, momentum);
}

// N neighbours per thread; channels is a multiple of N.
template <class T, int N>
__global__ void batch_norm_normalise(const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y,
                                     const float* __restrict__ mean, const float* __restrict__ variance,
                                     const float* __restrict__ weight, const float* __restrict__ bias, int count,
                                     int channels, float epsilon, bool relu) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  auto in = *(const Pack<T, N>*)(x + i);
  Pack<T, N> added, out;
  if (residual) added = *(const Pack<T, N>*)(residual + i);
  #pragma unroll
  for (int k = 0; k < N; k++) {
    int channel = i % channels + k;
    float scale = weight[channel] * rsqrtf(variance[channel] + epsilon);
    float value = ((float)in.at[k] - mean[channel]) * scale + bias[channel];
    if (residual) value += (float)added.at[k];
    out.at[k] = (T)(relu && value < 0 ? 0.0f : value);
  }
  *(Pack<T, N>*)(y + i) = out;
}

__device__ float2 summed_in_block(float2 own) {
  __shared__ float2 all[HEIGHT][LANES];
  all[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  for (int i = 1; threadIdx.y == 0 && i < HEIGHT; i++) {
    own.x += all[i][threadIdx.x].x;
    own.y += all[i][threadIdx.x].y;
  }
  return own;
}

// y is null where there was no ReLU.
template <class T>
__global__ void batch_norm_sums(const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x,
                                const float* __restrict__ mean, float* __restrict__ sums, float* __restrict__ products,
                                int rows, int channels, int rows_of_part) {
  int channel = blockIdx.x * LANES + threadIdx.x;
  int first = blockIdx.y * rows_of_part, last = min(rows, first + rows_of_part);
  float2 sum = {0, 0};
  float centre = channel < channels ? mean[channel] : 0;
  #pragma unroll 4
  for (int row = first + threadIdx.y; channel < channels && row < last; row += HEIGHT) {
    int i = row * channels + channel;
    float g = y == nullptr || (float)y[i] > 0 ? (float)dy[i] : 0;
    sum.x += g;
    sum.y += g * ((float)x[i] - centre);
  }
  sum = summed_in_block(sum);
  if (threadIdx.y > 0 || channel >= channels) return;
  sums[blockIdx.y * channels + channel] = sum.x;
  products[blockIdx.y * channels + channel] = sum.y;
}

__global__ void batch_norm_gradients(const float* __restrict__ sums, const float* __restrict__ products,
                                     const float* __restrict__ variance, float* __restrict__ dweight,
                                     float* __restrict__ dbias, int channels, int parts, float epsilon) {
  int channel = blockIdx.x * LANES + threadIdx.x;
  float2 sum = {0, 0};
  for (int part = threadIdx.y; channel < channels && part < parts; part += HEIGHT) {
    sum.x += sums[part * channels + channel];
    sum.y += products[part * channels + channel];
  }
  sum = summed_in_block(sum);
  if (threadIdx.y > 0 || channel >= channels) return;
  dbias[channel] = sum.x;
  dweight[channel] = sum.y * rsqrtf(variance[channel] + epsilon);
}

// per_row is 1/n while training and 0 with running averages; dresidual is null where there was no residual.
template <class T, int N>
__global__ void batch_norm_backward(const T* __restrict__ dy, const T* __restrict__ y, const T* __restrict__ x,
                                    T* __restrict__ dx, T* __restrict__ dresidual, const float* __restrict__ mean,
                                    const float* __restrict__ variance, const float* __restrict__ weight,
                                    const float* __restrict__ dweight, const float* __restrict__ dbias, int count,
                                    int channels, float epsilon, float per_row) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  auto in = *(const Pack<T, N>*)(x + i);
  auto g = *(const Pack<T, N>*)(dy + i);
  Pack<T, N> out;
  if (y != nullptr) {
    auto rectified = *(const Pack<T, N>*)(y + i);
    #pragma unroll
    for (int k = 0; k < N; k++)
      if (!((float)rectified.at[k] > 0)) g.at[k] = (T)0.0f;
  }
  #pragma unroll
  for (int k = 0; k < N; k++) {
    int channel = i % channels + k;
    float inverse = rsqrtf(variance[channel] + epsilon), normalised = ((float)in.at[k] - mean[channel]) * inverse;
    float through_statistics = (dbias[channel] + normalised * dweight[channel]) * per_row;
    out.at[k] = (T)(weight[channel] * inverse * ((float)g.at[k] - through_statistics));
  }
  *(Pack<T, N>*)(dx + i) = out;
  if (dresidual) *(Pack<T, N>*)(dresidual + i) = g;
}

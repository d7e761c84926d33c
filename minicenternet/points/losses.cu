// The losses over N objects. The focal loss (E4), with p = sigmoid(z), q = 1 - p, a = alpha, b = beta:
//
//   loss = -1/N · sum of  q^a log p  where Y = 1,  (1-Y)^b p^a log q  elsewhere
//   dz   =  dloss/N ·  (q^a (a p log p - q))  where Y = 1,  ((1-Y)^b p^a (p - a q log q))  elsewhere
//
// Forward: each block sums its share, one block then sums the blocks: the order is the same every time. N stays on the
// GPU. Backward computes p again rather than reading it. A thread takes K neighbouring logits at once.
//
// The L1 loss (E5, E6):  loss = 1/N · sum of |x - target| over the objects' coordinates. They are few: one block.
#include "../ops/block_sum.cuh"
#include "../ops/numbers.cuh"

constexpr int THREADS = 256, POINT_THREADS = 1024;

__device__ __forceinline__ float power(float x, float n) {
  return n == 2 ? x * x : n == 4 ? x * x * (x * x) : powf(x, n);
}

// p, q, log p and log q of a logit; nothing overflows, and no small p is lost.
struct Probability {
  float p, q, log_p, log_q;

  __device__ __forceinline__ explicit Probability(float z) {
    float e = expf(-fabsf(z)), larger = 1 / (1 + e), soft = log1pf(e);
    p = z >= 0 ? larger : e * larger;
    q = z >= 0 ? e * larger : larger;
    log_p = fminf(z, 0) - soft;
    log_q = -fmaxf(z, 0) - soft;
  }
};

// sums (blocks, 2): of the terms, and how many objects. count is a multiple of K.
template <class T, int K>
__global__ void focal_loss_forward(const T* __restrict__ logits, const float* __restrict__ heatmap,
                                   float* __restrict__ sums, int count, float alpha, float beta) {
  float sum = 0, objects = 0;
  for (long long i = (blockIdx.x * THREADS + threadIdx.x) * K; i < count; i += gridDim.x * THREADS * K) {
    auto z = *(const Pack<T, K>*)(logits + i);
    auto wanted = *(const Pack<float, K>*)(heatmap + i);
    #pragma unroll
    for (int k = 0; k < K; k++) {
      Probability of((float)z.at[k]);
      float Y = wanted.at[k];
      sum += Y == 1 ? power(of.q, alpha) * of.log_p : power(1 - Y, beta) * power(of.p, alpha) * of.log_q;
      objects += Y == 1;
    }
  }
  sum = block_sum<THREADS>(sum);
  objects = block_sum<THREADS>(objects);
  if (threadIdx.x > 0) return;
  sums[2 * blockIdx.x] = sum;
  sums[2 * blockIdx.x + 1] = objects;
}

// One block: loss, and the number of objects, at least 1.
__global__ void focal_loss_total(const float* __restrict__ sums, float* __restrict__ loss, float* __restrict__ objects,
                                 int blocks) {
  float sum = 0, found = 0;
  for (int i = threadIdx.x; i < blocks; i += THREADS) {
    sum += sums[2 * i];
    found += sums[2 * i + 1];
  }
  sum = block_sum<THREADS>(sum);
  found = block_sum<THREADS>(found);
  if (threadIdx.x > 0) return;
  *objects = fmaxf(found, 1);
  *loss = -sum / fmaxf(found, 1);
}

template <class T, int K>
__global__ void focal_loss_backward(const T* __restrict__ logits, const float* __restrict__ heatmap,
                                    const float* __restrict__ objects, const float* __restrict__ dloss,
                                    T* __restrict__ dlogits, int count, float alpha, float beta) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * K;
  if (i >= count) return;
  auto z = *(const Pack<T, K>*)(logits + i);
  auto wanted = *(const Pack<float, K>*)(heatmap + i);
  float scale = *dloss / *objects;
  #pragma unroll
  for (int k = 0; k < K; k++) {
    Probability of((float)z.at[k]);
    float Y = wanted.at[k];
    float slope = Y == 1 ? power(of.q, alpha) * (alpha * of.p * of.log_p - of.q)
                         : power(1 - Y, beta) * power(of.p, alpha) * (of.p - alpha * of.q * of.log_q);
    z.at[k] = (T)(scale * slope);
  }
  *(Pack<T, K>*)(dlogits + i) = z;
}

// x, target (points, D), mask (points,) -> loss, and what it was divided by
template <class T>
__global__ void __launch_bounds__(POINT_THREADS) l1_loss_forward(
    const T* __restrict__ x, const float* __restrict__ target, const float* __restrict__ mask,
    float* __restrict__ loss, float* __restrict__ divisor, int points, int D, bool released) {
  float sum = 0, objects = 0;
  for (int point = threadIdx.x; point < points; point += POINT_THREADS) {
    objects += mask[point];
    for (int i = point * D; i < (point + 1) * D; i++) sum += fabsf((float)x[i] - target[i]) * mask[point];
  }
  sum = block_sum<POINT_THREADS>(sum);
  objects = block_sum<POINT_THREADS>(objects);
  if (threadIdx.x > 0) return;
  *divisor = released ? objects * D + 1e-4f : fmaxf(objects, 1);
  *loss = sum / *divisor;
}

template <class T>
__global__ void l1_loss_backward(const T* __restrict__ x, const float* __restrict__ target,
                                 const float* __restrict__ mask, const float* __restrict__ divisor,
                                 const float* __restrict__ dloss, T* __restrict__ dx, int count, int D) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float error = (float)x[i] - target[i], sign = error > 0 ? 1 : error < 0 ? -1 : error;  // NaN stays
  dx[i] = (T)(*dloss / *divisor * (sign * mask[i / D]));
}

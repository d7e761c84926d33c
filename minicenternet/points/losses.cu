// The focal loss over N objects (E4), with p = sigmoid(z), q = 1 - p, a = alpha, b = beta:
//
//   loss = -1/N · sum of  q^a log p  where Y = 1,  (1-Y)^b p^a log q  elsewhere
//   dz   =  dloss/N ·  (q^a (a p log p - q))  where Y = 1,  ((1-Y)^b p^a (p - a q log q))  elsewhere
//
// Forward: each block sums its share, one block then sums the blocks: the order is the same every time. N stays on the
// GPU. Backward: one thread per logit; it computes p again rather than reading it.
#include "../ops/block_sum.cuh"
#include "../ops/numbers.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ float power(float x, float n) {
  return n == 2 ? x * x : n == 4 ? x * x * (x * x) : powf(x, n);
}

// log p and log q of a logit; neither overflows nor loses a small p.
__device__ __forceinline__ float2 log_probabilities(float z) {
  float soft = log1pf(expf(-fabsf(z)));
  return {fminf(z, 0) - soft, -fmaxf(z, 0) - soft};
}

// sums (blocks, 2): of the terms, and how many objects.
template <class T>
__global__ void focal_loss_forward(const T* __restrict__ logits, const float* __restrict__ heatmap,
                                   float* __restrict__ sums, int count, float alpha, float beta) {
  float sum = 0, objects = 0;
  for (long long i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
    float2 log_pq = log_probabilities((float)logits[i]);
    float Y = heatmap[i], p = expf(log_pq.x), q = expf(log_pq.y);
    if (Y == 1) {
      sum += power(q, alpha) * log_pq.x;
      objects += 1;
    } else {
      sum += power(1 - Y, beta) * power(p, alpha) * log_pq.y;
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

template <class T>
__global__ void focal_loss_backward(const T* __restrict__ logits, const float* __restrict__ heatmap,
                                    const float* __restrict__ objects, const float* __restrict__ dloss,
                                    T* __restrict__ dlogits, int count, float alpha, float beta) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float2 log_pq = log_probabilities((float)logits[i]);
  float Y = heatmap[i], p = expf(log_pq.x), q = expf(log_pq.y);
  float slope = Y == 1 ? power(q, alpha) * (alpha * p * log_pq.x - q)
                       : power(1 - Y, beta) * power(p, alpha) * (p - alpha * q * log_pq.y);
  dlogits[i] = (T)(*dloss / *objects * slope);
}

// The losses over N objects. The focal loss (E4) has one formula for all cells: with x = -z where Y = 1 and x = z
// elsewhere, a logit that should be low, p = sigmoid(x), softplus(x) = -log(1-p), a = alpha, b = beta,
//
//   loss = 1/N · sum of  w p^a softplus(x),   w = 1 where Y = 1,  (1-Y)^b elsewhere
//   dz   = dloss/N · (dx/dz) w p^a (p + a (1-p) softplus(x))
//
// Forward: each block sums its share, one block then sums the blocks: the order is the same every time. N stays on the
// GPU. Backward computes p again rather than reading it. A thread takes K neighbouring logits at once. There are so many
// cells that instructions count: PAPER says that a = 2 and b = 4, as in the paper, so that powers are products.
//
// The L1 loss (E5, E6):  loss = 1/N · sum of |x - target| over the objects' coordinates. They are few: one block.
#include "../ops/block_sum.cuh"
#include "../ops/numbers.cuh"

constexpr int THREADS = 256, POINT_THREADS = 1024, RESIDENT = 8;  // RESIDENT: blocks that must fit a processor

// log(1 + e) for e in [0, 1], to 2e-7 of it, as a polynomial: log1pf takes twice as many instructions, __logf of 1 + e
// would lose a small e.
__device__ __forceinline__ float log_of_1_and(float e) {
  float sum = 5.2326927e-3f;
  sum = fmaf(sum, e, -2.9505232e-2f);
  sum = fmaf(sum, e, 7.8225940e-2f);
  sum = fmaf(sum, e, -1.3663244e-1f);
  sum = fmaf(sum, e, 1.9106007e-1f);
  sum = fmaf(sum, e, -2.4842982e-1f);
  sum = fmaf(sum, e, 3.3319098e-1f);
  sum = fmaf(sum, e, -4.9999493e-1f);
  return e * fmaf(sum, e, 9.9999994e-1f);
}

// What a cell adds: its weight times p^a, p, 1 - p and softplus(x); nothing overflows, and no small p is lost.
template <bool PAPER>
struct Cell {
  float weight, p, q, softplus;

  __device__ __forceinline__ Cell(float x, float Y, float alpha, float beta) {
    float e = __expf(-fabsf(x)), larger = __fdividef(1, 1 + e), apart = 1 - Y;
    p = x >= 0 ? larger : e * larger;
    q = x >= 0 ? e * larger : larger;
    softplus = fmaxf(x, 0) + log_of_1_and(e);
    weight = PAPER ? apart * apart * (apart * apart) : powf(apart, beta);
    if (Y == 1) weight = 1;
    weight *= PAPER ? p * p : powf(p, alpha);
  }
};

// sums (blocks, 2): of the terms, and how many objects. count is a multiple of K.
template <class T, int K, bool PAPER>
__global__ void __launch_bounds__(THREADS, RESIDENT) focal_loss_forward(
    const T* __restrict__ logits, const float* __restrict__ heatmap, float* __restrict__ sums, int count, float alpha,
    float beta) {
  float sum = 0, objects = 0;
  for (long long i = (blockIdx.x * THREADS + threadIdx.x) * K; i < count; i += gridDim.x * THREADS * K) {
    auto z = *(const Pack<T, K>*)(logits + i);
    auto wanted = *(const Pack<float, K>*)(heatmap + i);
    #pragma unroll
    for (int k = 0; k < K; k++) {
      float sign = wanted.at[k] == 1 ? -1 : 1;
      Cell<PAPER> cell(sign * (float)z.at[k], wanted.at[k], alpha, beta);
      sum += cell.weight * cell.softplus;
      objects += wanted.at[k] == 1;
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
  *loss = sum / fmaxf(found, 1);
}

template <class T, int K, bool PAPER>
__global__ void focal_loss_backward(const T* __restrict__ logits, const float* __restrict__ heatmap,
                                    const float* __restrict__ objects, const float* __restrict__ dloss,
                                    T* __restrict__ dlogits, int count, float alpha, float beta) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * K;
  if (i >= count) return;
  auto z = *(const Pack<T, K>*)(logits + i);
  auto wanted = *(const Pack<float, K>*)(heatmap + i);
  float scale = __fdividef(*dloss, *objects);
  #pragma unroll
  for (int k = 0; k < K; k++) {
    float sign = wanted.at[k] == 1 ? -1 : 1;
    Cell<PAPER> cell(sign * (float)z.at[k], wanted.at[k], alpha, beta);
    z.at[k] = (T)(sign * scale * cell.weight * (cell.p + alpha * cell.q * cell.softplus));
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

// One step of an optimiser for all parameters in one launch:
//
//   sgd    m = μ m + g                                    θ = θ - η m
//   adam   m = β1 m + (1-β1) g,  v = β2 v + (1-β2) g²     θ = θ - η' m / (s √v + ε)
//
// with g = gradient + weight_decay θ.  Each block updates up to CHUNK numbers of one parameter. addresses (tensors, P)
// says where in memory the P parameters, their gradients and the arrays beside them lie; parts (blocks, 3) says which
// parameter a block works on, where it begins and how many numbers it takes. rates lies on the GPU, so that a captured
// CUDA graph, whose arguments are fixed, can be given others: η for sgd; η' = η/(1-β1ᵗ) and s = 1/√(1-β2ᵗ) for adam.
// rest1 and rest2 are 1-β1 and 1-β2, which a float's 1 - 0.999f would miss by 1e-5.  factor, where given, multiplies
// the gradients; where it is NaN, nothing is updated: so is a step skipped of which only the GPU knows that it is bad.
#include "ops/block_sum.cuh"

constexpr int THREADS = 256;

__global__ void sgd_step(const long long* __restrict__ addresses, const int* __restrict__ parts,
                         const float* __restrict__ rates, int parameters, float momentum, float weight_decay,
                         const float* __restrict__ factor) {
  const int *part = parts + 3 * blockIdx.x, parameter = part[0];
  float* weight = (float*)addresses[parameter] + part[1];
  const float* gradient = (const float*)addresses[parameters + parameter] + part[1];
  float* velocity = (float*)addresses[2 * parameters + parameter] + part[1];
  const float by = factor ? *factor : 1.0f;
  if (by != by) return;
  for (int i = threadIdx.x; i < part[2]; i += blockDim.x) {
    float g = by * gradient[i] + weight_decay * weight[i];
    velocity[i] = momentum * velocity[i] + g;
    weight[i] -= rates[0] * velocity[i];
  }
}

__global__ void adam_step(const long long* __restrict__ addresses, const int* __restrict__ parts,
                          const float* __restrict__ rates, int parameters, float beta1, float rest1, float beta2,
                          float rest2, float epsilon, float weight_decay, const float* __restrict__ factor) {
  const int *part = parts + 3 * blockIdx.x, parameter = part[0];
  float* weight = (float*)addresses[parameter] + part[1];
  const float* gradient = (const float*)addresses[parameters + parameter] + part[1];
  float* mean = (float*)addresses[2 * parameters + parameter] + part[1];
  float* variance = (float*)addresses[3 * parameters + parameter] + part[1];
  const float by = factor ? *factor : 1.0f;
  if (by != by) return;
  for (int i = threadIdx.x; i < part[2]; i += blockDim.x) {
    float g = by * gradient[i] + weight_decay * weight[i];
    mean[i] = beta1 * mean[i] + rest1 * g;
    variance[i] = beta2 * variance[i] + rest2 * (g * g);
    weight[i] -= rates[0] * (mean[i] / (rates[1] * sqrtf(variance[i]) + epsilon));
  }
}

// The moving average of all arrays in one launch: average += rates[0] (present - average), see Average in optim.py.
__global__ void average_step(const long long* __restrict__ addresses, const int* __restrict__ parts,
                             const float* __restrict__ rates, int arrays) {
  const int *part = parts + 3 * blockIdx.x, array = part[0];
  float* average = (float*)addresses[array] + part[1];
  const float* present = (const float*)addresses[arrays + array] + part[1];
  for (int i = threadIdx.x; i < part[2]; i += blockDim.x) average[i] += rates[0] * (present[i] - average[i]);
}

// The joint Euclidean norm of all gradients in two launches: sums[b], the squares of block b's part, then the root of
// all, one block adding them in order.
__global__ void gradient_squares(const long long* __restrict__ addresses, const int* __restrict__ parts, int parameters,
                                 float* __restrict__ sums) {
  const int* part = parts + 3 * blockIdx.x;
  const float* gradient = (const float*)addresses[parameters + part[0]] + part[1];
  float own = 0;
  for (int i = threadIdx.x; i < part[2]; i += THREADS) own += gradient[i] * gradient[i];
  float sum = block_sum<THREADS>(own);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void gradient_norm(const float* __restrict__ sums, float* __restrict__ norm, int count) {
  float own = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) own += sums[i];
  float sum = block_sum<THREADS>(own);
  if (threadIdx.x == 0) *norm = sqrtf(sum);
}

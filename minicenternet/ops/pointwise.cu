// The point-wise ops that CuPy would need several passes for, or that are worth more than CuPy's one number a thread:
// sigmoid, a sum (then ReLU), and the gradient of ReLU, dx = dy where y > 0. A thread takes N neighbours, 16 bytes where
// that fits; count is a multiple of N.
#include "numbers.cuh"

template <class T, int N>
__global__ void sigmoid_forward(const T* __restrict__ x, T* __restrict__ y, int count) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  auto value = *(const Pack<T, N>*)(x + i);
  #pragma unroll
  for (int k = 0; k < N; k++) value.at[k] = (T)sigmoid((float)value.at[k]);
  *(Pack<T, N>*)(y + i) = value;
}

// y may be a; b is null where nothing is added.
template <class T, int N>
__global__ void add_forward(const T* a, const T* __restrict__ b, T* y, int count, bool relu) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  auto sum = *(const Pack<T, N>*)(a + i);
  if (b) {
    auto added = *(const Pack<T, N>*)(b + i);
    #pragma unroll
    for (int k = 0; k < N; k++) sum.at[k] = (T)((float)sum.at[k] + (float)added.at[k]);
  }
  #pragma unroll
  for (int k = 0; k < N; k++)
    if (relu && (float)sum.at[k] < 0) sum.at[k] = (T)0.0f;  // NaN stays
  *(Pack<T, N>*)(y + i) = sum;
}

template <class T, int N>
__global__ void relu_backward(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx, int count) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  auto gradient = *(const Pack<T, N>*)(dy + i), rectified = *(const Pack<T, N>*)(y + i);
  #pragma unroll
  for (int k = 0; k < N; k++)
    if (!((float)rectified.at[k] > 0)) gradient.at[k] = (T)0.0f;
  *(Pack<T, N>*)(dx + i) = gradient;
}

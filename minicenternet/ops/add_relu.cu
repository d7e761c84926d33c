// What remains of a folded batch norm (nn/folding.py), over y itself:  y = relu(y + residual), either of them if asked.
#include "numbers.cuh"

// N neighbours per thread; count is a multiple of N.  As two passes would, the sum is rounded before it is compared.
template <class T, int N>
__global__ void add_relu(T* __restrict__ y, const T* __restrict__ residual, int count, bool relu) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  auto value = *(const Pack<T, N>*)(y + i);
  if (residual) {
    auto added = *(const Pack<T, N>*)(residual + i);
    #pragma unroll
    for (int k = 0; k < N; k++) value.at[k] = (T)((float)value.at[k] + (float)added.at[k]);
  }
  #pragma unroll
  for (int k = 0; k < N; k++)
    if (relu && (float)value.at[k] < 0) value.at[k] = (T)0.0f;  // NaN stays
  *(Pack<T, N>*)(y + i) = value;
}

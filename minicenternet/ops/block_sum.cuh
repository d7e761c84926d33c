// The sum over a block's threads, pairwise, so that its order is the same every time; every thread gets it.
#pragma once

template <int THREADS>
__device__ float block_sum(float own) {
  __shared__ float sums[THREADS];
  __syncthreads();  // whoever still reads the sum before
  sums[threadIdx.x] = own;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

// Blocks of threads over rows of channels, x (rows, channels): thread x of a block takes N neighbouring channels, which
// it reads at once, thread y every blockDim.y-th row of the block's part. Block (i, part) has blockDim.x * N channels.
#pragma once

constexpr int ROW_THREADS = 256;  // of a block, at most; not fewer than it has channels

__device__ __forceinline__ int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }

// The first of a thread's channels.
template <int N>
__device__ __forceinline__ int first_channel() {
  return (blockIdx.x * blockDim.x + threadIdx.x) * N;
}

// The channel that a thread answers for on behalf of its block, thread t for the block's channel t; -1 for none.
template <int N>
__device__ __forceinline__ int own_channel(int channels) {
  int width = blockDim.x * N, channel = blockIdx.x * width + thread_of_block();
  return thread_of_block() < width && channel < channels ? channel : -1;
}

// V numbers that all rows of a channel share.
template <int V>
struct Shared {
  float of[V];
};

// Give each thread those of its N channels; each is worked out once in a block, and all reads are under way together.
template <int V, int N, class OfChannel>
__device__ __forceinline__ void spread_over_rows(int channels, float (&values)[V][N], OfChannel of_channel) {
  __shared__ float all[V][ROW_THREADS];
  int channel = own_channel<N>(channels);
  Shared<V> own = {};
  if (channel >= 0) own = of_channel(channel);
  #pragma unroll
  for (int v = 0; v < V; v++) all[v][thread_of_block()] = own.of[v];
  __syncthreads();
  #pragma unroll
  for (int v = 0; v < V; v++)
    #pragma unroll
    for (int k = 0; k < N; k++) values[v][k] = all[v][threadIdx.x * N + k];
}

// Add up what the rows of threads found, from top to bottom; each thread gets the sum of its `own_channel`.
template <int N>
__device__ __forceinline__ float sum_over_rows(const float (&values)[N]) {
  __shared__ float all[ROW_THREADS * N];
  int width = blockDim.x * N;
  __syncthreads();  // whoever still reads what was added before
  #pragma unroll
  for (int k = 0; k < N; k++) all[thread_of_block() * N + k] = values[k];
  __syncthreads();
  float sum = 0;
  for (int y = 0; thread_of_block() < width && y < blockDim.y; y++) sum += all[y * width + thread_of_block()];
  return sum;
}

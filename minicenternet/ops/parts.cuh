// What blocks found of each channel in their parts of the rows, put together by blocks of 8 channels x 128 threads: few
// channels, so that even 64 make blocks for several processors. A thread takes every 128th part, eight of them at a
// time, so that many loads are under way at once; what the threads found is then put together two by two. The shape
// alone decides in which order.
#pragma once

constexpr int PART_CHANNELS = 8, PART_THREADS = 128, PARTS_AT_ONCE = 8;

__device__ __forceinline__ int channel_of_parts() { return blockIdx.x * PART_CHANNELS + threadIdx.x; }

// Put together what the threads of a channel found; the result is thread 0's (of threadIdx.y).
template <class Found, class Combine>
__device__ __forceinline__ Found put_together(Found own, Combine combine) {
  __shared__ Found all[PART_THREADS][PART_CHANNELS];
  all[threadIdx.y][threadIdx.x] = own;
  for (int half = PART_THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half)
      all[threadIdx.y][threadIdx.x] = own = combine(own, all[threadIdx.y + half][threadIdx.x]);
  }
  return own;
}

template <int V>
struct Sums {
  float of[V];
};

// Thread 0's: the sums over all parts of values[v][part, channel].
template <int V>
__device__ __forceinline__ Sums<V> sums_of_parts(const float* const (&values)[V], int parts, int channels) {
  int channel = channel_of_parts();
  Sums<V> own = {};
  for (int first = threadIdx.y; channel < channels && first < parts; first += PART_THREADS * PARTS_AT_ONCE) {
    float some[PARTS_AT_ONCE][V];
    #pragma unroll
    for (int i = 0; i < PARTS_AT_ONCE; i++) {
      int part = first + i * PART_THREADS;
      #pragma unroll
      for (int v = 0; v < V; v++) some[i][v] = part < parts ? values[v][part * channels + channel] : 0;
    }
    #pragma unroll
    for (int i = 0; i < PARTS_AT_ONCE; i++)
      #pragma unroll
      for (int v = 0; v < V; v++) own.of[v] += some[i][v];
  }
  return put_together(own, [](Sums<V> a, const Sums<V>& b) {
    #pragma unroll
    for (int v = 0; v < V; v++) a.of[v] += b.of[v];
    return a;
  });
}

// Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c]
//
// Forward: one thread for N neighbouring channels of an output; it also notes which tap u*K + v won, the first of equal
// ones. A NaN wins at once. Backward: one thread for N channels of an input gathers from the windows that saw it,
//
//   dx[b, h, w, c] = sum of dy[b, i, j, c] over those i, j whose winning tap is (h + P - S*i, w + P - S*j)
//
// Where K and S are known to the compiler it unrolls the loops, and the loads of a thread are under way together.
#include "numbers.cuh"

// count: of outputs; channels is a multiple of N.  K, S: size and stride, 0 for those that are given.
template <class T, int N, int K, int S>
__global__ void max_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ taps,
                                   int count, int height, int width, int channels, int out_height, int out_width,
                                   int size, int stride, int padding) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  if (K) size = K, stride = S;
  Place out = place_of(i, out_height, out_width, channels);
  float best[N];
  Pack<unsigned char, N> winner;
  bool begun = false;
  #pragma unroll
  for (int u = 0; u < size; u++)
    #pragma unroll
    for (int v = 0; v < size; v++) {
      Place in = {out.image, stride * out.y + u - padding, stride * out.x + v - padding, out.channel};
      if (in.y < 0 || in.y >= height || in.x < 0 || in.x >= width) continue;
      auto seen = *(const Pack<T, N>*)(x + index_of(in, height, width, channels));
      #pragma unroll
      for (int k = 0; k < N; k++) {
        float value = (float)seen.at[k];
        if (begun && !(value > best[k]) && !(isnan(value) && !isnan(best[k]))) continue;
        best[k] = value;
        winner.at[k] = u * size + v;
      }
      begun = true;
    }
  Pack<T, N> largest;
  #pragma unroll
  for (int k = 0; k < N; k++) largest.at[k] = (T)best[k];
  *(Pack<T, N>*)(y + i) = largest;
  *(Pack<unsigned char, N>*)(taps + i) = winner;
}

// count: of inputs.
template <class T, int N, int K, int S>
__global__ void max_pool2d_backward(const T* __restrict__ dy, const unsigned char* __restrict__ taps,
                                    T* __restrict__ dx, int count, int height, int width, int channels, int out_height,
                                    int out_width, int size, int stride, int padding) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  if (K) size = K, stride = S;
  Place in = place_of(i, height, width, channels);
  float sums[N] = {};
  // Of the windows that saw row y, at most K / S rounded up, the last one starts at or above it.
  int last_y = (in.y + padding) / stride, last_x = (in.x + padding) / stride, most = (size + stride - 1) / stride;
  #pragma unroll
  for (int oy = last_y; oy > last_y - most; oy--)
    #pragma unroll
    for (int ox = last_x; ox > last_x - most; ox--) {
      int u = in.y + padding - stride * oy, v = in.x + padding - stride * ox, tap = u * size + v;
      if (oy < 0 || oy >= out_height || ox < 0 || ox >= out_width || u >= size || v >= size) continue;
      int window = index_of({in.image, oy, ox, in.channel}, out_height, out_width, channels);
      auto winner = *(const Pack<unsigned char, N>*)(taps + window);
      auto gradient = *(const Pack<T, N>*)(dy + window);
      #pragma unroll
      for (int k = 0; k < N; k++)
        if (winner.at[k] == tap) sums[k] += (float)gradient.at[k];
    }
  Pack<T, N> sent;
  #pragma unroll
  for (int k = 0; k < N; k++) sent.at[k] = (T)sums[k];
  *(Pack<T, N>*)(dx + i) = sent;
}

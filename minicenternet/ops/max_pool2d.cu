// Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c]
//
// Forward: one thread for N neighbouring channels of an output; it also notes which tap u*K + v won, the first of equal
// ones. A NaN wins at once. Backward: one thread for N channels of an input gathers from the windows that saw it,
//
//   dx[b, h, w, c] = sum of dy[b, i, j, c] over those i, j whose winning tap is (h + P - S*i, w + P - S*j)
#include "numbers.cuh"

// count: of outputs; channels is a multiple of N.
template <class T, int N>
__global__ void max_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ taps,
                                   int count, int height, int width, int channels, int out_height, int out_width,
                                   int size, int stride, int padding) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  Place out = place_of(i, out_height, out_width, channels);
  float best[N];
  Pack<unsigned char, N> winner;
  bool begun = false;
  for (int u = 0; u < size; u++)
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
template <class T, int N>
__global__ void max_pool2d_backward(const T* __restrict__ dy, const unsigned char* __restrict__ taps,
                                    T* __restrict__ dx, int count, int height, int width, int channels, int out_height,
                                    int out_width, int size, int stride, int padding) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  Place in = place_of(i, height, width, channels);
  float sums[N] = {};
  // The last window that saw row y starts at or above it; the first one ends at or below it.
  for (int oy = min((in.y + padding) / stride, out_height - 1); oy >= 0 && stride * oy + size > in.y + padding; oy--)
    for (int ox = min((in.x + padding) / stride, out_width - 1); ox >= 0 && stride * ox + size > in.x + padding; ox--) {
      int tap = (in.y + padding - stride * oy) * size + in.x + padding - stride * ox;
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

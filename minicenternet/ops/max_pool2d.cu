// Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c]
//
// Forward: one thread for N neighbouring channels of an output; it finds the largest, which is NaN where there is one,
// then which tap u*K + v that is, the first of equal ones. Instead of a tap in the border one inside is seen twice, so
// that no thread parts from the others. Backward: one thread for N channels of an input gathers from the windows that saw it,
//
//   dx[b, h, w, c] = sum of dy[b, i, j, c] over those i, j whose winning tap is (h + P - S*i, w + P - S*j)
//
// Where K and S are known to the compiler it unrolls the loops, and the loads of a thread are under way together.
#include "numbers.cuh"

// NaN is larger than any number.
template <class T, int N>
__device__ __forceinline__ void keep_larger(Pack<T, N>& largest, const Pack<T, N>& others) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {  // two in one instruction
    typedef typename PairOf<T>::type Pair;
    #pragma unroll
    for (int k = 0; k < N; k += 2)
      *(Pair*)&largest.at[k] = __hmax2_nan(*(Pair*)&largest.at[k], *(Pair*)&others.at[k]);
  } else {
    #pragma unroll
    for (int k = 0; k < N; k++) {
      float value = (float)others.at[k];
      if (value > (float)largest.at[k] || isnan(value)) largest.at[k] = others.at[k];
    }
  }
}

// count: of outputs; channels is a multiple of N.  K, S: size and stride, 0 for those that are given.
template <class T, int N, int K, int S>
__global__ void max_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ taps,
                                   int count, int height, int width, int channels, int out_height, int out_width,
                                   int size, int stride, int padding) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  if (K) size = K, stride = S;
  Place out = place_of(i, out_height, out_width, channels);
  int y_first = stride * out.y - padding, x_first = stride * out.x - padding;
  int top = max(0, -y_first), bottom = min(size, height - y_first) - 1;  // the taps inside
  int left = max(0, -x_first), right = min(size, width - x_first) - 1;
  auto seen = [&](int u, int v) {
    return *(const Pack<T, N>*)(x + index_of({out.image, y_first + u, x_first + v, out.channel}, height, width, channels));
  };
  Pack<T, N> largest = seen(top, left);
  #pragma unroll
  for (int u = 0; u < size; u++)
    #pragma unroll
    for (int v = 0; v < size; v++) keep_larger(largest, seen(min(max(u, top), bottom), min(max(v, left), right)));
  int winner[N];
  #pragma unroll
  for (int u = size - 1; u >= 0; u--)
    #pragma unroll
    for (int v = size - 1; v >= 0; v--) {
      int inside_u = min(max(u, top), bottom), inside_v = min(max(v, left), right);
      auto values = seen(inside_u, inside_v);
      #pragma unroll
      for (int k = 0; k < N; k++)
        if (!((float)values.at[k] < (float)largest.at[k])) winner[k] = inside_u * size + inside_v;
    }
  Pack<unsigned char, N> won;
  #pragma unroll
  for (int k = 0; k < N; k++) won.at[k] = winner[k];
  *(Pack<T, N>*)(y + i) = largest;
  *(Pack<unsigned char, N>*)(taps + i) = won;
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

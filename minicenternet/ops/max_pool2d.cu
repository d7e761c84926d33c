// Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c]
//
// Forward: one thread for N neighbouring channels of an output; it finds the largest, which is NaN where there is one,
// then which tap u*K + v that is, the first of equal ones. Instead of a tap in the border one inside is seen twice, so
// that no thread parts from the others. Backward: one thread for N channels of some inputs gathers from the windows
// that saw them,
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
    Place in = {out.image, y_first + u, x_first + v, out.channel};
    return *(const Pack<T, N>*)(x + index_of(in, height, width, channels));
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

// Of a window in the compiled sizes, a thread takes N channels of those S x S inputs whose last window is the same, the
// `most` x `most` windows that see some of them each once; else of one input. rows, columns: of such blocks; count: the
// numbers of a map of as many pixels.
template <class T, int N, int K, int S>
__global__ void max_pool2d_backward(const T* __restrict__ dy, const unsigned char* __restrict__ taps,
                                    T* __restrict__ dx, int count, int height, int width, int channels, int out_height,
                                    int out_width, int size, int stride, int padding, int rows, int columns) {
  constexpr int SIDE = K ? S : 1;
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  if (K) size = K, stride = S;
  Place block = place_of(i, rows, columns, channels);
  // In the padded map: the first input, and how far into its last window it lies.
  int y = K ? S * block.y : block.y + padding, x = K ? S * block.x : block.x + padding;
  int last_y = y / stride, last_x = x / stride, into_y = y - stride * last_y, into_x = x - stride * last_x;
  int most = (size + stride - 1) / stride;
  float sums[SIDE][SIDE][N] = {};
  #pragma unroll
  for (int back_y = 0; back_y < most; back_y++)
    #pragma unroll
    for (int back_x = 0; back_x < most; back_x++) {
      int oy = last_y - back_y, ox = last_x - back_x;
      if (oy < 0 || oy >= out_height || ox < 0 || ox >= out_width) continue;
      int window = index_of({block.image, oy, ox, block.channel}, out_height, out_width, channels);
      auto winner = *(const Pack<unsigned char, N>*)(taps + window);
      auto gradient = *(const Pack<T, N>*)(dy + window);
      #pragma unroll
      for (int p = 0; p < SIDE; p++)
        #pragma unroll
        for (int q = 0; q < SIDE; q++) {
          int u = (K ? p : into_y) + stride * back_y, v = (K ? q : into_x) + stride * back_x;
          if (u >= size || v >= size) continue;
          #pragma unroll
          for (int k = 0; k < N; k++)
            if (winner.at[k] == u * size + v) sums[p][q][k] += (float)gradient.at[k];
        }
    }
  #pragma unroll
  for (int p = 0; p < SIDE; p++)
    #pragma unroll
    for (int q = 0; q < SIDE; q++) {
      Place in = {block.image, y + p - padding, x + q - padding, block.channel};
      if (in.y < 0 || in.y >= height || in.x < 0 || in.x >= width) continue;
      Pack<T, N> sent;
      #pragma unroll
      for (int k = 0; k < N; k++) sent.at[k] = (T)sums[p][q][k];
      *(Pack<T, N>*)(dx + index_of(in, height, width, channels)) = sent;
    }
}

// Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c]
//
// Forward: one thread per output; it also notes which tap u*K + v won, the first of equal ones. A NaN wins at once.
// Backward: one thread per input gathers from the windows that saw it,
//
//   dx[b, h, w, c] = sum of dy[b, i, j, c] over those i, j whose winning tap is (h + P - S*i, w + P - S*j)
#include "numbers.cuh"

template <class T>
__global__ void max_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ taps,
                                   int count, int height, int width, int channels, int out_height, int out_width,
                                   int size, int stride, int padding) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place out = place_of(i, out_height, out_width, channels);
  float best = -INFINITY;
  int tap = -1;  // of the best so far; none yet
  for (int u = 0; u < size; u++)
    for (int v = 0; v < size; v++) {
      Place in = {out.image, stride * out.y + u - padding, stride * out.x + v - padding, out.channel};
      if (in.y < 0 || in.y >= height || in.x < 0 || in.x >= width) continue;
      float value = (float)x[index_of(in, height, width, channels)];
      if (tap < 0 || value > best || (isnan(value) && !isnan(best))) {
        best = value;
        tap = u * size + v;
      }
    }
  y[i] = (T)best;
  taps[i] = tap;
}

template <class T>
__global__ void max_pool2d_backward(const T* __restrict__ dy, const unsigned char* __restrict__ taps,
                                    T* __restrict__ dx, int count, int height, int width, int channels, int out_height,
                                    int out_width, int size, int stride, int padding) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place in = place_of(i, height, width, channels);
  float sum = 0;
  // The last window that saw row y starts at or above it; the first one ends at or below it.
  for (int oy = min((in.y + padding) / stride, out_height - 1); oy >= 0 && stride * oy + size > in.y + padding; oy--)
    for (int ox = min((in.x + padding) / stride, out_width - 1); ox >= 0 && stride * ox + size > in.x + padding; ox--) {
      int u = in.y + padding - stride * oy, v = in.x + padding - stride * ox;
      int window = index_of({in.image, oy, ox, in.channel}, out_height, out_width, channels);
      if (taps[window] == u * size + v) sum += (float)dy[window];
    }
  dx[i] = (T)sum;
}

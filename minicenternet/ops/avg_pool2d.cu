// Average pooling:  y[b, i, j, c] = 1/K² · sum over u, v of x[b, S*i + u - P, S*j + v - P, c], x zero outside
//
// Forward: one thread per output. Backward: one thread per input gathers from the windows that saw it,
//
//   dx[b, h, w, c] = 1/K² · sum of dy[b, i, j, c] over 0 <= h + P - S*i < K, 0 <= w + P - S*j < K
#include "numbers.cuh"

template <class T>
__global__ void avg_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, int count, int height, int width,
                                   int channels, int out_height, int out_width, int size, int stride, int padding) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place out = place_of(i, out_height, out_width, channels);
  float sum = 0;
  for (int u = 0; u < size; u++)
    for (int v = 0; v < size; v++) {
      Place in = {out.image, stride * out.y + u - padding, stride * out.x + v - padding, out.channel};
      if (in.y >= 0 && in.y < height && in.x >= 0 && in.x < width)
        sum += (float)x[index_of(in, height, width, channels)];
    }
  y[i] = (T)(sum / (size * size));
}

template <class T>
__global__ void avg_pool2d_backward(const T* __restrict__ dy, T* __restrict__ dx, int count, int height, int width,
                                    int channels, int out_height, int out_width, int size, int stride, int padding) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place in = place_of(i, height, width, channels);
  float sum = 0;
  for (int oy = min((in.y + padding) / stride, out_height - 1); oy >= 0 && stride * oy + size > in.y + padding; oy--)
    for (int ox = min((in.x + padding) / stride, out_width - 1); ox >= 0 && stride * ox + size > in.x + padding; ox--)
      sum += (float)dy[index_of({in.image, oy, ox, in.channel}, out_height, out_width, channels)];
  dx[i] = (T)(sum / (size * size));
}

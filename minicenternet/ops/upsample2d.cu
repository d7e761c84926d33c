// Upsampling F times:  nearest    y[b, i, j, c] = x[b, i / F, j / F, c]
//                      bilinear   y[b, i, j, c] = sum over h, w of hat(i, h) hat(j, w) x[b, h, w, c]
//
// hat(i, h) = max(0, 1 - |p - h|) is the share of input h in output i, whose place in x is p = (i + 1/2)/F - 1/2,
// limited to the map. Each output lies between two inputs in each direction; each input reaches the 2F outputs around it, and
// those beyond the border. Forward: one thread per output. Backward: one thread per input gathers, by the same shares.
#include "numbers.cuh"

__device__ __forceinline__ float place_in_x(int i, int factor, int size) {
  return fminf(fmaxf((i + 0.5f) / factor - 0.5f, 0), size - 1);
}

__device__ __forceinline__ float hat(int i, int h, int factor, int size) {
  return fmaxf(0, 1 - fabsf(place_in_x(i, factor, size) - h));
}

template <class T>
__global__ void upsample2d_nearest_forward(const T* __restrict__ x, T* __restrict__ y, int count, int height, int width,
                                           int channels, int factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place out = place_of(i, factor * height, factor * width, channels);
  y[i] = x[index_of({out.image, out.y / factor, out.x / factor, out.channel}, height, width, channels)];
}

template <class T>
__global__ void upsample2d_nearest_backward(const T* __restrict__ dy, T* __restrict__ dx, int count, int height,
                                            int width, int channels, int factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place in = place_of(i, height, width, channels);
  float sum = 0;
  for (int oy = factor * in.y; oy < factor * (in.y + 1); oy++)
    for (int ox = factor * in.x; ox < factor * (in.x + 1); ox++)
      sum += (float)dy[index_of({in.image, oy, ox, in.channel}, factor * height, factor * width, channels)];
  dx[i] = (T)sum;
}

template <class T>
__global__ void upsample2d_bilinear_forward(const T* __restrict__ x, T* __restrict__ y, int count, int height,
                                            int width, int channels, int factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place out = place_of(i, factor * height, factor * width, channels);
  float py = place_in_x(out.y, factor, height), px = place_in_x(out.x, factor, width);
  int top = (int)py, left = (int)px, bottom = min(top + 1, height - 1), right = min(left + 1, width - 1);
  float down = py - top, across = px - left;
  auto at = [&](int h, int w) { return (float)x[index_of({out.image, h, w, out.channel}, height, width, channels)]; };
  float upper = (1 - across) * at(top, left) + across * at(top, right);
  float lower = (1 - across) * at(bottom, left) + across * at(bottom, right);
  y[i] = (T)((1 - down) * upper + down * lower);
}

template <class T>
__global__ void upsample2d_bilinear_backward(const T* __restrict__ dy, T* __restrict__ dx, int count, int height,
                                             int width, int channels, int factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Place in = place_of(i, height, width, channels);
  int out_height = factor * height, out_width = factor * width;
  int top = max(factor * in.y - factor / 2, 0), bottom = min(factor * in.y + 3 * factor / 2, out_height);
  int left = max(factor * in.x - factor / 2, 0), right = min(factor * in.x + 3 * factor / 2, out_width);
  float sum = 0;
  for (int oy = top; oy < bottom; oy++)
    for (int ox = left; ox < right; ox++)
      sum += hat(oy, in.y, factor, height) * hat(ox, in.x, factor, width) *
             (float)dy[index_of({in.image, oy, ox, in.channel}, out_height, out_width, channels)];
  dx[i] = (T)sum;
}

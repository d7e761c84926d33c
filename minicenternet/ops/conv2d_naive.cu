// Convolution, first rung: one thread for one number of the result, the formula of conv2d.py as it stands.
//
//     y[b, i, j, o] = bias[o] + sum over u, v, c of x[b, S*i + D*u - P, S*j + D*v - P, c] * weight[o, c, u, v]
//
// x (B, H, W, C), weight (O, C/G, KH, KW), y (B, OH, OW, O). T is how numbers are stored; all arithmetic is float32.
// Every number is read again for each product: 2 loads for 1 multiply-add. The caches save what they can.
#include "conv2d.cuh"

__device__ __forceinline__ size_t thread_number() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

template <class T>
__global__ void conv2d_naive_forward(const T* __restrict__ x, const T* __restrict__ weight,
                                     const float* __restrict__ bias, T* __restrict__ y, Convolution g, int relu) {
  size_t n = thread_number();
  if (n >= (size_t)g.batch * g.out_height * g.out_width * g.outputs) return;
  int o = n % g.outputs, j = n / g.outputs % g.out_width, i = n / g.outputs / g.out_width % g.out_height;
  size_t b = n / g.outputs / g.out_width / g.out_height;
  int channels = g.channels / g.groups, first = o / (g.outputs / g.groups) * channels;
  float sum = 0.f;
  for (int u = 0; u < g.kernel_height; u++) {
    int row = g.stride_y * i + g.dilation_y * u - g.padding_y;
    if (row < 0 || row >= g.height) continue;
    for (int v = 0; v < g.kernel_width; v++) {
      int column = g.stride_x * j + g.dilation_x * v - g.padding_x;
      if (column < 0 || column >= g.width) continue;
      const T* seen = x + ((b * g.height + row) * g.width + column) * g.channels + first;
      for (int c = 0; c < channels; c++)
        sum += (float)seen[c] * (float)weight[((o * channels + c) * g.kernel_height + u) * g.kernel_width + v];
    }
  }
  if (bias) sum += bias[o];
  y[n] = T(relu && sum < 0 ? 0.f : sum);
}

// Each input pixel gathers from the outputs that saw it: through tap u that is output (row + P - D*u) / S, if there is
// one. Gathering, no two threads write to one place: no atomics, and the same bits on every run.
template <class T>
__global__ void conv2d_naive_dinput(const T* __restrict__ dy, const T* __restrict__ weight,
                                    const float* __restrict__ bias, T* __restrict__ dx, Convolution g, int relu) {
  size_t n = thread_number();
  if (n >= (size_t)g.batch * g.height * g.width * g.channels) return;
  int channel = n % g.channels, column = n / g.channels % g.width, row = n / g.channels / g.width % g.height;
  size_t b = n / g.channels / g.width / g.height;
  int channels = g.channels / g.groups, outputs = g.outputs / g.groups;
  int first = channel / channels * outputs, c = channel % channels;
  float sum = 0.f;
  for (int u = 0; u < g.kernel_height; u++) {
    int down = row + g.padding_y - g.dilation_y * u, i = down / g.stride_y;
    if (down < 0 || down % g.stride_y || i >= g.out_height) continue;
    for (int v = 0; v < g.kernel_width; v++) {
      int right = column + g.padding_x - g.dilation_x * v, j = right / g.stride_x;
      if (right < 0 || right % g.stride_x || j >= g.out_width) continue;
      const T* sent = dy + ((b * g.out_height + i) * g.out_width + j) * g.outputs;
      for (int o = first; o < first + outputs; o++)
        sum += (float)sent[o] * (float)weight[((o * channels + c) * g.kernel_height + u) * g.kernel_width + v];
    }
  }
  if (bias) sum += bias[channel];
  dx[n] = T(relu && sum < 0 ? 0.f : sum);
}

// dweight[o, c, u, v] = sum over b, i, j of dy[b, i, j, o] * x[b, what (i, j) sees through (u, v), c]
template <class T>
__global__ void conv2d_naive_dweight(const T* __restrict__ x, const T* __restrict__ dy, float* __restrict__ dweight,
                                     Convolution g) {
  size_t n = thread_number();
  int channels = g.channels / g.groups;
  if (n >= (size_t)g.outputs * channels * g.kernel_height * g.kernel_width) return;
  int v = n % g.kernel_width, u = n / g.kernel_width % g.kernel_height;
  int c = n / g.kernel_width / g.kernel_height % channels, o = n / g.kernel_width / g.kernel_height / channels;
  int channel = o / (g.outputs / g.groups) * channels + c;
  float sum = 0.f;
  for (size_t b = 0; b < g.batch; b++)
    for (int i = 0; i < g.out_height; i++) {
      int row = g.stride_y * i + g.dilation_y * u - g.padding_y;
      if (row < 0 || row >= g.height) continue;
      for (int j = 0; j < g.out_width; j++) {
        int column = g.stride_x * j + g.dilation_x * v - g.padding_x;
        if (column < 0 || column >= g.width) continue;
        sum += (float)dy[((b * g.out_height + i) * g.out_width + j) * g.outputs + o] *
               (float)x[((b * g.height + row) * g.width + column) * g.channels + channel];
      }
    }
  dweight[n] = sum;
}

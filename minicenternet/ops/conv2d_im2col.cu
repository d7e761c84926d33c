// Convolution, second rung (im2col): write down, for every output pixel, all that it sees; then it is one matrix
// product, which cuBLAS does.
//
//                  KH*KW*C/G                  O/G                    O/G
//              +---------------+           +-------+              +-------+
//    B*OH*OW   |    columns    |  @        | taps  | KH*KW*C/G =  |   y   |  B*OH*OW      for each of G groups
//              +---------------+           +-------+              +-------+
//
// The price: columns are KH*KW times as large as x, written once and read once.
#include "conv2d.cuh"

// columns[g, m, (u, v, c)] = x[b, S*i + D*u - P, S*j + D*v - P, g*C/G + c], pixel m = (b, i, j); zero outside
__global__ void conv2d_columns(const float* __restrict__ x, float* __restrict__ columns, Convolution g) {
  size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x, pixels = (size_t)g.batch * g.out_height * g.out_width;
  int channels = g.channels / g.groups, depth = g.kernel_height * g.kernel_width * channels;
  if (n >= g.groups * pixels * depth) return;
  int c = n % channels, v = n / channels % g.kernel_width, u = n / channels / g.kernel_width % g.kernel_height;
  size_t m = n / depth % pixels, b = m / g.out_width / g.out_height;
  int j = m % g.out_width, i = m / g.out_width % g.out_height, group = n / depth / pixels;
  int row = g.stride_y * i + g.dilation_y * u - g.padding_y, column = g.stride_x * j + g.dilation_x * v - g.padding_x;
  bool inside = row >= 0 && row < g.height && column >= 0 && column < g.width;
  columns[n] = inside ? x[((b * g.height + row) * g.width + column) * g.channels + group * channels + c] : 0.f;
}

// The adjoint (col2im): each pixel of dx gathers its copies from dcolumns, one for each tap that saw it.
__global__ void conv2d_gather_columns(const float* __restrict__ dcolumns, float* __restrict__ dx, Convolution g) {
  size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= (size_t)g.batch * g.height * g.width * g.channels) return;
  int channel = n % g.channels, column = n / g.channels % g.width, row = n / g.channels / g.width % g.height;
  size_t b = n / g.channels / g.width / g.height, pixels = (size_t)g.batch * g.out_height * g.out_width;
  int channels = g.channels / g.groups, c = channel % channels, group = channel / channels;
  float sum = 0.f;
  for (int u = 0; u < g.kernel_height; u++) {
    int down = row + g.padding_y - g.dilation_y * u, i = down / g.stride_y;
    if (down < 0 || down % g.stride_y || i >= g.out_height) continue;
    for (int v = 0; v < g.kernel_width; v++) {
      int right = column + g.padding_x - g.dilation_x * v, j = right / g.stride_x;
      if (right < 0 || right % g.stride_x || j >= g.out_width) continue;
      size_t m = group * pixels + (b * g.out_height + i) * g.out_width + j;
      sum += dcolumns[((m * g.kernel_height + u) * g.kernel_width + v) * channels + c];
    }
  }
  dx[n] = sum;
}

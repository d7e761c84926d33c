// What the rungs of conv2d share: the shapes that a launch is given, and how the implicit matrix is counted.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A convolution as ops/conv2d.py defines it; channels and outputs of all groups together.
struct Convolution {
  int batch, height, width, channels;     // x (B, H, W, C)
  int out_height, out_width, outputs;     // y (B, OH, OW, O)
  int kernel_height, kernel_width, groups;  // weight (O, C/G, KH, KW)
  int stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
};

// Along one axis, output i sees the inputs  start + stride*i + step*k  for k = 0 .. taps-1.
struct Window {
  int start, stride, step, taps;
};

// out[b, first_y + jump_y*i, first_x + jump_x*j, n]
//     = sum over k, l, c of x[b, seen by i through k, seen by j through l, c] * taps[n, k, l, c]
// The forward pass is one of these (first = 0, jump = 1); the input gradient is one for each phase of the stride.
struct Correlation {
  int batch, height, width;       // x (B, H, W, groups * channels)
  int groups, channels, outputs;  // channels and outputs of one group
  int rows, columns;              // i < rows, j < columns
  Window y, x;
  int out_height, out_width, first_y, jump_y, first_x, jump_x;  // out (B, out_height, out_width, groups * outputs)
  int tap_y, tap_step_y, tap_x, tap_step_x;                     // tap k is row tap_y + tap_step_y*k of the weight
  int taps_begin;                                               // where taps (groups * outputs, K, L, channels) begin

  __device__ int pixels() const { return batch * rows * columns; }
  __device__ int depth() const { return y.taps * x.taps * channels; }
};

struct Phases {  // as many as one launch takes; all have the same groups and outputs
  int count;
  Correlation of[4];
};

// An output pixel (b, i, j), number m in row-major order.
struct Pixel {
  int b, i, j;

  Pixel() = default;
  __device__ Pixel(int m, const Correlation& g) {
    j = m % g.columns;
    m /= g.columns;
    i = m % g.rows;
    b = m / g.rows;
  }
  __device__ void advance(int by, const Correlation& g) {
    for (j += by; j >= g.columns; j -= g.columns)
      if (++i == g.rows) i = 0, ++b;
  }
};

// A column (k, l, c) of the implicit matrix, number d in row-major order; inside while d < depth.
struct Column {
  int k, l, c;

  __device__ Column(int d, const Correlation& g) {
    if (g.x.taps == 0) {  // a phase that no tap reaches has no columns
      k = l = c = 0;
      return;
    }
    c = d % g.channels;
    d /= g.channels;
    l = d % g.x.taps;
    k = d / g.x.taps;
  }
  __device__ void advance(int by, const Correlation& g) {
    for (c += by; c >= g.channels; c -= g.channels)
      if (++l == g.x.taps) l = 0, ++k;
  }
  __device__ bool inside(const Correlation& g) const { return k < g.y.taps; }
  __device__ int number(const Correlation& g) const { return (k * g.x.taps + l) * g.channels + c; }

  // The same columns in another order: lots of so many channels, a divisor of all, through all taps after one another.
  __device__ static Column of_lot(int lot, int size, int c, const Correlation& g) {
    Column column(0, g);
    int taps = g.y.taps * g.x.taps;
    if (taps == 0) return column;
    column.c = lot / taps * size + c;
    column.l = lot % g.x.taps;
    column.k = lot % taps / g.x.taps;
    return column;
  }
  __device__ void advance_a_tap(int size, const Correlation& g) {
    if (++l < g.x.taps) return;
    l = 0;
    if (++k == g.y.taps) k = 0, c += size;
  }
};

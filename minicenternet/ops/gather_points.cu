// Reading a map at chosen cells:  y[b, m, c] = x[b, index[b, m], c]      x (B, cells, C), index (B, M)
//
// Backward adds each dy to its cell. A cell may be listed several times; the thread of the first listing adds up all of
// them, in their order, and the others leave it alone: one writer per cell, no atomics, the same bits every time. dx is
// zero before. An index outside the map reads NaN, which shows, and writes nothing.
#include "numbers.cuh"

template <class T>
__global__ void gather_points_forward(const T* __restrict__ x, const long long* __restrict__ index, T* __restrict__ y,
                                      int count, int cells, int points, int channels) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int point = i / channels, channel = i % channels;
  long long cell = index[point];
  bool inside = cell >= 0 && cell < cells;
  y[i] = inside ? x[(point / points * cells + (int)cell) * channels + channel] : (T)NAN;
}

template <class T>
__global__ void gather_points_backward(const T* __restrict__ dy, const long long* __restrict__ index,
                                       T* __restrict__ dx, int count, int cells, int points, int channels) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int point = i / channels, channel = i % channels, first = point / points * points, last = first + points;
  long long cell = index[point];
  if (cell < 0 || cell >= cells) return;
  for (int other = first; other < point; other++)
    if (index[other] == cell) return;  // listed before: its thread adds this one up
  float sum = 0;
  for (int other = point; other < last; other++)
    if (index[other] == cell) sum += (float)dy[other * channels + channel];
  dx[(point / points * cells + (int)cell) * channels + channel] = (T)sum;
}

// Two moves that CuPy would do number by number, or not at all.
//
//   copy_channels    some neighbouring channels of all rows of one array to another, 16 bytes a thread
//   slice_backward   the gradient of a slice by index arrays
//
// A slice by index arrays: an element of x that was taken several times sums what came back to each.
//
// One thread per element of x gathers, so that the order of its sum is fixed.  order: the elements of dy, sorted by the
// element of x that they were taken from;  first[i]: where those of element i begin in it, one more than x has elements.
#include "numbers.cuh"

// to[row, to_first + c] = from[row, from_first + c] for c < channels; all of these numbers are multiples of N.
template <class T, int N>
__global__ void copy_channels(const T* __restrict__ from, T* __restrict__ to, int count, int channels, int from_first,
                              int from_channels, int to_first, int to_channels) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (i >= count) return;
  int row = i / channels, c = i - row * channels;
  auto moved = *(const Pack<T, N>*)(from + row * from_channels + from_first + c);
  *(Pack<T, N>*)(to + row * to_channels + to_first + c) = moved;
}

template <class T>
__global__ void slice_backward(const T* __restrict__ dy, const int* __restrict__ order, const int* __restrict__ first,
                               T* __restrict__ dx, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int k = first[i]; k < first[i + 1]; k++) sum += (float)dy[order[k]];
  dx[i] = (T)sum;
}

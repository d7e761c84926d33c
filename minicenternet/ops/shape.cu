// The gradient of a slice by index arrays: an element of x that was taken several times sums what came back to each.
//
// One thread per element of x gathers, so that the order of its sum is fixed.  order: the elements of dy, sorted by the
// element of x that they were taken from;  first[i]: where those of element i begin in it, one more than x has elements.
#include "numbers.cuh"

template <class T>
__global__ void slice_backward(const T* __restrict__ dy, const long long* __restrict__ order,
                               const long long* __restrict__ first, T* __restrict__ dx, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (long long k = first[i]; k < first[i + 1]; k++) sum += (float)dy[order[k]];
  dx[i] = (T)sum;
}

// Deformable convolution, DCNv2 (deform_conv2d.py has the formulas): what each tap of each output looks at becomes a
// row of columns, and then it is a 1x1 convolution, which conv2d's ladder does.
//
//     columns[m, t, c] = mask[m, t] * sum over the four neighbours q of share[q] * x[q, c]        m = (b, i, j)
//
// offset (B, OH, OW, 2*taps), mask (B, OH, OW, taps), x (B, H, W, C), columns (B, OH, OW, taps * C); a *point* is one
// (m, t), number n = m * taps + t. Numbers are stored as T and computed with as float.
#include "conv2d.cuh"

// Where a point lies: between pixels (top, left) and (top + 1, left + 1), at a distance (down, right) from the first.
// A point without neighbours is drawn to the border of zeros; a NaN has neighbours, and stays NaN in the distance.
struct Point {
  int image, top, left;
  float down, right;
  bool inside;

  template <class T>
  __device__ Point(const T* offset, int n, const Convolution& g) {
    int taps = g.kernel_height * g.kernel_width, tap = n % taps, m = n / taps;
    int j = m % g.out_width, i = m / g.out_width % g.out_height;
    image = m / g.out_width / g.out_height;
    float row = g.stride_y * i - g.padding_y + g.dilation_y * (tap / g.kernel_width) + (float)offset[2 * n];
    float column = g.stride_x * j - g.padding_x + g.dilation_x * (tap % g.kernel_width) + (float)offset[2 * n + 1];
    inside = row > -1.f && row < g.height && column > -1.f && column < g.width;
    split(row, g.height, top, down);
    split(column, g.width, left, right);
  }
  __device__ static void split(float position, int size, int& before, float& distance) {
    if (position < -1.f) position = -1.f;
    if (position > size) position = size;
    float whole = floorf(fminf(position, size - 1));  // fminf leaves a NaN out
    before = (int)whole;
    distance = position - whole;
  }
  // Share of neighbour q = 0 upper left, 1 upper right, 2 lower left, 3 lower right.
  __device__ float share(int q) const { return (q / 2 ? down : 1 - down) * (q % 2 ? right : 1 - right); }

  template <class T>
  __device__ float neighbour(int q, const T* x, int channel, const Convolution& g) const {
    int row = top + q / 2, column = left + q % 2;
    if (row < 0 || row >= g.height || column < 0 || column >= g.width) return 0.f;
    return x[(((size_t)image * g.height + row) * g.width + column) * g.channels + channel];
  }
};

// One thread for each number of the columns.
template <class T>
__global__ void deform_conv2d_columns(const T* __restrict__ x, const T* __restrict__ offset, const T* __restrict__ mask,
                                      T* __restrict__ columns, Convolution g, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int channel = i % g.channels, n = i / g.channels;
  Point point(offset, n, g);
  float sum = 0.f;
  for (int q = 0; q < 4; q++) sum += point.share(q) * point.neighbour(q, x, channel, g);
  columns[i] = T(sum * (float)mask[n]);
}

// Gradients of offset and mask: one warp for each point finds how much each neighbour agrees with dcolumns.
//
//     agreement[q] = sum over c of x[q, c] * dcolumns[n, c]
//     dmask = sum of share[q] * agreement[q],     doffset = mask * d dmask / d (down, right)
template <class T>
__global__ void deform_conv2d_doffset(const T* __restrict__ x, const T* __restrict__ offset, const T* __restrict__ mask,
                                      const T* __restrict__ dcolumns, T* __restrict__ doffset, T* __restrict__ dmask,
                                      Convolution g, int points) {
  int n = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (n >= points) return;  // a whole warp
  Point point(offset, n, g);
  float agreement[4] = {};
  for (int c = lane; c < g.channels; c += 32)
    for (int q = 0; q < 4; q++)
      agreement[q] += point.neighbour(q, x, c, g) * (float)dcolumns[(size_t)n * g.channels + c];
  for (int q = 0; q < 4; q++)
    for (int lanes = 16; lanes > 0; lanes /= 2) agreement[q] += __shfl_xor_sync(0xffffffffu, agreement[q], lanes);
  if (lane) return;
  float down = point.down, right = point.right, scale = point.inside ? (float)mask[n] : 0.f;
  float upper = (1 - right) * agreement[0] + right * agreement[1];
  float lower = (1 - right) * agreement[2] + right * agreement[3];
  float across = (1 - down) * (agreement[1] - agreement[0]) + down * (agreement[3] - agreement[2]);
  doffset[2 * n] = T((lower - upper) * scale);
  doffset[2 * n + 1] = T(across * scale);
  dmask[n] = T((1 - down) * upper + down * lower);
}

// The gradient of x scatters: any number of points may look at one pixel. To have a fixed order and no atomics, points
// are sorted by their corner, the upper left neighbour, counted in maps of (H + 1) x (W + 1) with a border above and to
// the left; then each pixel gathers from the points of the four corners that it is a neighbour of.
template <class T>
__global__ void deform_conv2d_corners(const T* __restrict__ offset, int* __restrict__ corner, Convolution g,
                                      int points) {
  int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= points) return;
  Point point(offset, n, g);
  corner[n] = (point.image * (g.height + 1) + point.top + 1) * (g.width + 1) + point.left + 1;
}

// order: the points, sorted by corner;  first[k]: where corner k begins in it, one more than there are corners.
template <class T>
__global__ void deform_conv2d_dinput(const T* __restrict__ offset, const T* __restrict__ mask,
                                     const T* __restrict__ dcolumns, const int* __restrict__ order,
                                     const int* __restrict__ first, T* __restrict__ dx, Convolution g, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int channel = i % g.channels, column = i / g.channels % g.width, row = i / g.channels / g.width % g.height;
  int image = i / g.channels / g.width / g.height;
  float sum = 0.f;
  for (int q = 0; q < 4; q++) {  // this pixel is neighbour q of that corner's points
    int corner = (image * (g.height + 1) + row + 1 - q / 2) * (g.width + 1) + column + 1 - q % 2;
    for (int k = first[corner]; k < first[corner + 1]; k++) {
      int n = order[k];
      sum += Point(offset, n, g).share(q) * (float)mask[n] * (float)dcolumns[(size_t)n * g.channels + channel];
    }
  }
  dx[i] = T(sum);
}

// What a batch of images asks of the network (E1 to E3), in one launch.
//
//   boxes (B, M, 4) in pixels, labels (B, M), -1 in an empty slot
//   -> heatmap (B, height, width, classes), index, offset, size, mask (B, objects)        all zero before
//
// Block (tile, image). Its threads first work out the image's objects, one each, into shared memory; every block does,
// since that is cheaper than waiting for another. Then each thread takes one cell of the tile and looks which objects
// reach it: it alone writes there, so the largest value needs no atomics. The first tile's block also writes the slots.
// Geometry is in double, rounded step by step as the NumPy reference rounds: a radius is cut to an integer.
#include "../ops/numbers.cuh"

struct Object {
  int x, y, label, radius;  // label -1: left no area in the map, or an empty slot
};

// E3, see gaussian_radius in targets.py.
__device__ int gaussian_radius(double height, double width, double overlap, bool released) {
  double around = height + width, area = height * width, least = INFINITY;
  double quadratics[3][3] = {{1, -around, area * (1 - overlap) / (1 + overlap)},
                             {4, -2 * around, area * (1 - overlap)},
                             {4 * overlap, 2 * overlap * around, -area * (1 - overlap)}};
  for (auto& [a, b, c] : quadratics) {
    double root = sqrt(__dsub_rn(__dmul_rn(b, b), __dmul_rn(4 * a, c)));
    least = fmin(least, released ? (-b + root) / 2 : 2 * fabs(c) / (fabs(b) + root));
  }
  return (int)least;
}

__device__ double clipped(float pixel, float stride, int size) { return fmin(fmax((double)pixel / stride, 0), size); }

__global__ void targets_encode(const float* __restrict__ boxes, const long long* __restrict__ labels,
                               float* __restrict__ heatmap, long long* __restrict__ index, float* __restrict__ offset,
                               float* __restrict__ size, float* __restrict__ mask, int slots, int objects, int height,
                               int width, int classes, float stride, double overlap, bool released) {
  extern __shared__ Object found[];  // (slots,)
  int image = blockIdx.y;
  for (int i = threadIdx.x; i < slots; i += blockDim.x) {
    const float* box = boxes + 4 * (image * slots + i);
    int label = (int)labels[image * slots + i];
    double left = clipped(box[0], stride, width), right = clipped(box[2], stride, width);
    double top = clipped(box[1], stride, height), bottom = clipped(box[3], stride, height);
    bool kept = label >= 0 && label < classes && right > left && bottom > top;
    found[i] = {min((int)((left + right) / 2), width - 1), min((int)((top + bottom) / 2), height - 1), kept ? label : -1, 0};
    if (kept) found[i].radius = gaussian_radius(ceil(bottom - top), ceil(right - left), overlap, released);
  }
  __syncthreads();

  for (int i = threadIdx.x; i < slots && blockIdx.x == 0; i += blockDim.x) {
    int slot = 0;  // how many were kept before this one
    for (int j = 0; j < i; j++) slot += found[j].label >= 0;
    if (found[i].label < 0 || slot >= objects) continue;
    const float* box = boxes + 4 * (image * slots + i);
    double left = clipped(box[0], stride, width), right = clipped(box[2], stride, width);
    double top = clipped(box[1], stride, height), bottom = clipped(box[3], stride, height);
    int at = image * objects + slot;
    index[at] = found[i].y * width + found[i].x;
    offset[2 * at] = (left + right) / 2 - found[i].x;
    offset[2 * at + 1] = (top + bottom) / 2 - found[i].y;
    size[2 * at] = right - left;
    size[2 * at + 1] = bottom - top;
    mask[at] = 1;
  }

  int cell = blockIdx.x * blockDim.x + threadIdx.x, y = cell / width, x = cell % width;
  if (cell >= height * width) return;
  int drawn = 0;
  for (int i = 0; i < slots && drawn < objects; i++) {
    Object object = found[i];
    if (object.label < 0) continue;
    drawn++;
    int dx = x - object.x, dy = y - object.y;
    if (abs(dx) > object.radius || abs(dy) > object.radius) continue;
    float sigma = (2 * object.radius + 1) / 6.0f;
    float* value = &heatmap[(image * height * width + cell) * classes + object.label];
    *value = fmaxf(*value, expf(-(dx * dx + dy * dy) / (2 * sigma * sigma)));
  }
}

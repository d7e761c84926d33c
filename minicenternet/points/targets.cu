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

struct Box {
  double left, top, right, bottom;
};

// In cells, clipped to the map.
__device__ Box in_cells(const float* box, float stride, int height, int width) {
  auto clipped = [&](float pixel, int size) { return fmin(fmax((double)pixel / stride, 0), size); };
  return {clipped(box[0], width), clipped(box[1], height), clipped(box[2], width), clipped(box[3], height)};
}

__global__ void targets_encode(const float* __restrict__ boxes, const long long* __restrict__ labels,
                               float* __restrict__ heatmap, long long* __restrict__ index, float* __restrict__ offset,
                               float* __restrict__ size, float* __restrict__ mask, int slots, int objects, int height,
                               int width, int classes, float stride, double overlap, bool released) {
  extern __shared__ Object found[];  // (slots,)
  int image = blockIdx.y;
  for (int i = threadIdx.x; i < slots; i += blockDim.x) {
    Box box = in_cells(boxes + 4 * (image * slots + i), stride, height, width);
    long long label = labels[image * slots + i];
    double w = box.right - box.left, h = box.bottom - box.top;
    bool kept = label >= 0 && label < classes && w > 0 && h > 0;
    int x = min((int)((box.left + box.right) / 2), width - 1), y = min((int)((box.top + box.bottom) / 2), height - 1);
    found[i] = {x, y, kept ? (int)label : -1, kept ? gaussian_radius(ceil(h), ceil(w), overlap, released) : 0};
  }
  __syncthreads();

  for (int i = threadIdx.x; i < slots && blockIdx.x == 0; i += blockDim.x) {
    int slot = 0;  // how many were kept before this one
    for (int j = 0; j < i; j++) slot += found[j].label >= 0;
    if (found[i].label < 0 || slot >= objects) continue;
    Box box = in_cells(boxes + 4 * (image * slots + i), stride, height, width);
    int at = image * objects + slot;
    index[at] = found[i].y * width + found[i].x;
    offset[2 * at] = (box.left + box.right) / 2 - found[i].x;
    offset[2 * at + 1] = (box.top + box.bottom) / 2 - found[i].y;
    size[2 * at] = box.right - box.left;
    size[2 * at + 1] = box.bottom - box.top;
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

// What a batch of images asks of the network (E1 to E3), in one launch.
//
//   boxes (B, M, 4) in pixels, labels (B, M), -1 in an empty slot
//   -> heatmap (B, height, width, classes), index, offset, size, mask (B, objects)
//
// Block (part, image). Its threads first work out the image's objects, one each, into shared memory; every block does,
// since that is cheaper than waiting for another. Then it draws its tiles of cells, one after another: in shared memory
// each thread takes one cell and looks which objects reach it; it alone writes there, so the largest value needs no
// atomics. The tile, which is mostly zeros, is then written once. The first part's block also writes the slots.
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

// tile: how many cells are drawn at once, at most a block's threads.
__global__ void targets_encode(const float* __restrict__ boxes, const long long* __restrict__ labels,
                               float* __restrict__ heatmap, long long* __restrict__ index, float* __restrict__ offset,
                               float* __restrict__ size, float* __restrict__ mask, int slots, int objects, int height,
                               int width, int classes, int tile, float stride, double overlap, bool released) {
  extern __shared__ Object found[];        // (slots,), behind which is room for
  float* drawn = (float*)(found + slots);  // (tile, classes)
  int image = blockIdx.y, cells = height * width;
  for (int i = threadIdx.x; i < slots; i += blockDim.x) {
    Box box = in_cells(boxes + 4 * (image * slots + i), stride, height, width);
    long long label = labels[image * slots + i];
    double w = box.right - box.left, h = box.bottom - box.top;
    bool kept = label >= 0 && label < classes && w > 0 && h > 0;
    int x = min((int)((box.left + box.right) / 2), width - 1), y = min((int)((box.top + box.bottom) / 2), height - 1);
    found[i] = {x, y, kept ? (int)label : -1, kept ? gaussian_radius(ceil(h), ceil(w), overlap, released) : 0};
  }
  for (int i = threadIdx.x; i < objects && blockIdx.x == 0; i += blockDim.x) {
    int at = image * objects + i;  // an empty slot, unless an object is written to it below
    index[at] = 0;
    mask[at] = offset[2 * at] = offset[2 * at + 1] = size[2 * at] = size[2 * at + 1] = 0;
  }
  for (int i = threadIdx.x; i < tile * classes; i += blockDim.x) drawn[i] = 0;
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

  for (int first = blockIdx.x * tile; first < cells; first += gridDim.x * tile) {
    int left = min(tile, cells - first), y = (first + threadIdx.x) / width, x = (first + threadIdx.x) % width;
    for (int i = 0, kept = 0; threadIdx.x < left && i < slots && kept < objects; i++) {
      Object object = found[i];
      if (object.label < 0) continue;
      kept++;
      int dx = x - object.x, dy = y - object.y;
      if (abs(dx) > object.radius || abs(dy) > object.radius) continue;
      float sigma = (2 * object.radius + 1) / 6.0f;
      float* value = &drawn[threadIdx.x * classes + object.label];
      *value = fmaxf(*value, expf(-(dx * dx + dy * dy) / (2 * sigma * sigma)));
    }
    __syncthreads();
    float* to = heatmap + (image * cells + first) * classes;
    for (int i = threadIdx.x; i < left * classes; i += blockDim.x) {
      to[i] = drawn[i];
      drawn[i] = 0;  // for the next tile
    }
    __syncthreads();
  }
}

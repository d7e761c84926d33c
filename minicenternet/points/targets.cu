// What a batch of images asks of the network (E1 to E3), in one launch.
//
//   boxes (B, M, 4) in pixels, labels (B, M), -1 in an empty slot
//   -> heatmap (B, height, width, classes), index, offset, size, mask (B, objects)
//
// Block (part, image). Its threads first work out the image's objects, one each, into shared memory; every block does,
// since that is cheaper than waiting for another. Then it draws its tiles of cells, one after another: in shared memory
// each thread takes one cell and the objects that reach its warp's rows; it alone writes there, so the largest value
// needs no atomics. The tile, which is mostly zeros, is then written once, N numbers at a time. The first part's block
// also writes the slots.
// Geometry is in double, rounded step by step as the NumPy reference rounds: a radius is cut to an integer.
#include "../ops/numbers.cuh"

struct Object {
  int x, y, label, radius;  // label -1: left no area in the map, came when all slots were taken, or an empty slot
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

// tile: how many cells are drawn at once, at most a block's threads, which are whole warps. classes is a multiple of N.
template <int N>
__global__ void targets_encode(const float* __restrict__ boxes, const long long* __restrict__ labels,
                               float* __restrict__ heatmap, long long* __restrict__ index, float* __restrict__ offset,
                               float* __restrict__ size, float* __restrict__ mask, int slots, int objects, int height,
                               int width, int classes, int tile, float stride, double overlap, bool released) {
  extern __shared__ __align__(16) Object found[];  // (slots,), behind which is room for
  float* drawn = (float*)(found + slots);          // (tile, classes)
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

  for (int first = 0; first < slots; first += blockDim.x) {
    int i = first + threadIdx.x, slot = 0;  // how many were kept before this one
    for (int j = 0; j < min(i, slots); j++) slot += found[j].label >= 0;
    bool kept = i < slots && found[i].label >= 0;
    __syncthreads();  // whoever still counts
    if (kept && slot >= objects) found[i].label = -1;
    if (kept && slot < objects && blockIdx.x == 0) {
      Box box = in_cells(boxes + 4 * (image * slots + i), stride, height, width);
      int at = image * objects + slot;
      index[at] = found[i].y * width + found[i].x;
      offset[2 * at] = (box.left + box.right) / 2 - found[i].x;
      offset[2 * at + 1] = (box.top + box.bottom) / 2 - found[i].y;
      size[2 * at] = box.right - box.left;
      size[2 * at + 1] = box.bottom - box.top;
      mask[at] = 1;
    }
    __syncthreads();
  }

  for (int first = blockIdx.x * tile; first < cells; first += gridDim.x * tile) {
    int left = min(tile, cells - first), y = (first + threadIdx.x) / width, x = (first + threadIdx.x) % width;
    int lane = threadIdx.x % warpSize, top = (first + threadIdx.x - lane) / width;
    int bottom = (first + threadIdx.x - lane + warpSize - 1) / width;  // the rows of the warp's cells
    for (int some = 0; some < slots; some += warpSize) {
      Object own = found[min(some + lane, slots - 1)];  // each lane looks at one object, whether it reaches these rows
      bool reaches = some + lane < slots && own.label >= 0 && own.y + own.radius >= top && own.y - own.radius <= bottom;
      for (unsigned those = __ballot_sync(~0u, reaches); those; those &= those - 1) {
        Object object = found[some + __ffs(those) - 1];
        int dx = x - object.x, dy = y - object.y;
        if (threadIdx.x >= left || abs(dx) > object.radius || abs(dy) > object.radius) continue;
        float sigma = (2 * object.radius + 1) / 6.0f;
        float* value = &drawn[threadIdx.x * classes + object.label];
        *value = fmaxf(*value, expf(-(dx * dx + dy * dy) / (2 * sigma * sigma)));
      }
    }
    __syncthreads();
    float* to = heatmap + (image * cells + first) * classes;
    #pragma unroll 4
    for (int i = threadIdx.x * N; i < left * classes; i += blockDim.x * N) {
      auto* from = (Pack<float, N>*)(drawn + i);
      *(Pack<float, N>*)(to + i) = *from;
      *from = {};  // for the next tile
    }
    __syncthreads();
  }
}

// The K best cells of each heatmap, and their boxes, in a tournament: nothing is read back, however often it is played.
//
//   top_k_first    a block sorts CHUNK cells of an image and keeps the best K
//   top_k_again    a block sorts CHUNK of those that are left and keeps the best K, until K are left
//   top_k_cells    their scores and places
//   decode_boxes   box = (x + dx ∓ w/2, y + dy ∓ h/2) · stride
//
// A cell is one 64-bit key that sorts as it should: its score in the upper half, so mapped that larger floats are
// larger integers, and in the lower half its index, inverted, so that of equal scores the first cell wins. A NaN sorts
// as best.
#include "../ops/numbers.cuh"

constexpr int CHUNK = 2048;  // as many keys as two for each of a block's 1024 threads
typedef unsigned long long Key;

__device__ __forceinline__ Key key_of(float score, unsigned index) {
  unsigned bits = __float_as_uint(score);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (Key)bits << 32 | ~index;
}

__device__ __forceinline__ float score_of(Key key) {
  unsigned bits = key >> 32;
  return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

// Bitonic sort (Batcher 1968), largest first: runs of `length`, up and down in turn, are merged to runs twice as long.
__device__ void sort_chunk(Key (&keys)[CHUNK]) {
  for (int length = 2; length <= CHUNK; length *= 2)
    for (int distance = length / 2; distance > 0; distance /= 2) {
      __syncthreads();
      int low = threadIdx.x / distance * 2 * distance + threadIdx.x % distance, high = low + distance;
      bool falling = (low & length) == 0;
      if ((keys[low] < keys[high]) == falling) {
        Key key = keys[low];
        keys[low] = keys[high];
        keys[high] = key;
      }
    }
  __syncthreads();
}

__device__ void keep_best(Key (&keys)[CHUNK], Key* __restrict__ best, int k) {
  sort_chunk(keys);
  for (int i = threadIdx.x; i < k; i += blockDim.x) best[(blockIdx.y * gridDim.x + blockIdx.x) * k + i] = keys[i];
}

// E8: whether none of a cell's 8 neighbours, of the same class, is larger.
template <class T>
__device__ bool is_peak(const T* heatmap, Place at, int height, int width, int classes) {
  float score = (float)heatmap[index_of(at, height, width, classes)];
  for (int y = max(at.y - 1, 0); y <= min(at.y + 1, height - 1); y++)
    for (int x = max(at.x - 1, 0); x <= min(at.x + 1, width - 1); x++)
      if ((float)heatmap[index_of({at.image, y, x, at.channel}, height, width, classes)] > score) return false;
  return true;
}

// Block (chunk, image).
template <class T>
__global__ void __launch_bounds__(CHUNK / 2) top_k_first(
    const T* __restrict__ heatmap, unsigned long long* __restrict__ best, int height, int width, int classes, int k,
    bool only_peaks) {
  __shared__ Key keys[CHUNK];
  int count = height * width * classes;
  for (int i = threadIdx.x; i < CHUNK; i += blockDim.x) {
    int index = blockIdx.x * CHUNK + i;
    keys[i] = 0;  // less than any cell's
    if (index >= count) continue;
    Place at = place_of(blockIdx.y * count + index, height, width, classes);
    float score = (float)heatmap[blockIdx.y * count + index];
    if (only_peaks && !is_peak(heatmap, at, height, width, classes)) score = 0;
    keys[i] = key_of(score + 0.0f, index);  // -0 becomes 0, which it is equal to
  }
  keep_best(keys, best, k);
}

// left (B, count) -> best (B, blocks, k)
__global__ void __launch_bounds__(CHUNK / 2) top_k_again(
    const unsigned long long* __restrict__ left, unsigned long long* __restrict__ best, int count, int k) {
  __shared__ Key keys[CHUNK];
  for (int i = threadIdx.x; i < CHUNK; i += blockDim.x) {
    int index = blockIdx.x * CHUNK + i;
    keys[i] = index < count ? left[blockIdx.y * count + index] : 0;
  }
  keep_best(keys, best, k);
}

// keys (B * K,) -> scores float32, labels, y, x
__global__ void top_k_cells(const unsigned long long* __restrict__ keys, float* __restrict__ scores,
                            long long* __restrict__ labels, long long* __restrict__ y, long long* __restrict__ x,
                            int count, int width, int classes) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  unsigned index = ~(unsigned)keys[i], cell = index / classes;
  scores[i] = score_of(keys[i]);
  labels[i] = index % classes;
  y[i] = cell / width;
  x[i] = cell % width;
}

// E9. y, x (B, K), offset and size (B, height, width, 2) -> boxes (B, K, 4); in double, as the reference does.
template <class T>
__global__ void decode_boxes(const long long* __restrict__ y, const long long* __restrict__ x,
                             const T* __restrict__ offset, const T* __restrict__ size, float* __restrict__ boxes,
                             int count, int k, int height, int width, float stride) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int at = index_of({i / k, (int)y[i], (int)x[i], 0}, height, width, 2);
  double centre_x = x[i] + (double)(float)offset[at], centre_y = y[i] + (double)(float)offset[at + 1];
  double half_width = (float)size[at] / 2, half_height = (float)size[at + 1] / 2;
  boxes[4 * i] = (centre_x - half_width) * stride;
  boxes[4 * i + 1] = (centre_y - half_height) * stride;
  boxes[4 * i + 2] = (centre_x + half_width) * stride;
  boxes[4 * i + 3] = (centre_y + half_height) * stride;
}

// The K best cells of each heatmap, and their boxes, in a tournament: nothing is read back, however large the map is.
//
//   top_k_groups   the best cell of 64, of 8 such groups, and of 8 of those: a tree over each 4096 cells
//   top_k_cells    from the roots down: a cell of the best K is in a group whose own best is among the K best of all
//                  groups, so that of the K best groups all 8 parts are looked at, and no others; scores and places
//   decode_boxes   box = (x + dx ∓ w/2, y + dy ∓ h/2) · stride
//
// A cell is one 64-bit key that sorts as it should: its score in the upper half, so mapped that larger floats are
// larger integers, and in the lower half its index, inverted, so that of equal scores the first cell wins. A NaN sorts
// as best. No cell's key is 0, which stands for none.
#include "../ops/numbers.cuh"

constexpr int PARTS = 8, THREADS = 512, CELLS = PARTS * THREADS;  // parts of a group, and cells of a tree
constexpr int NODES = 1 + 8 + 64;  // of a tree: the root is number 0, the parts of node i are 8 i + 1 .. 8 i + 8
constexpr int CHUNK = 2048;        // keys that are sorted at once
typedef unsigned long long Key;

__device__ __forceinline__ unsigned rank_of(float score) {
  unsigned bits = __float_as_uint(score);
  return isnan(score) ? ~0u : bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ Key key_of(unsigned bits, unsigned index) { return (Key)bits << 32 | ~index; }

__device__ __forceinline__ unsigned index_of(Key key) { return ~(unsigned)key; }

__device__ __forceinline__ float score_of(Key key) {
  unsigned bits = key >> 32;
  return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

struct Map {
  int height, width, classes;
  bool only_peaks;  // E8: where one of the 8 neighbours of its class is larger, a cell's score is 0
  bool logits;      // whose sigmoids are the scores, rounded to T: those of unequal logits may be equal

  __device__ int size() const { return height * width * classes; }

  template <class T>
  __device__ __forceinline__ float score(T number) const {
    return logits ? (float)(T)sigmoid((float)number) : (float)number;
  }
};

// largest: of a cell and its neighbours, or of none.
template <class T>
__device__ __forceinline__ unsigned rank_among(T own, T largest, const Map& map) {
  float score = map.score(own);
  if (map.score(largest) > score) score = 0;
  if (map.logits) return __float_as_uint(score) | 0x80000000u;  // neither -0 nor below 0: the same, sooner
  return rank_of(score + 0.0f);                                 // -0 becomes 0, which it is equal to
}

template <class T, int N>
__device__ __forceinline__ void keep_larger(Pack<T, N>& largest, const Pack<T, N>& others) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {  // two in one instruction
    typedef typename PairOf<T>::type Pair;
    #pragma unroll
    for (int k = 0; k < N; k += 2) *(Pair*)&largest.at[k] = __hmax2(*(Pair*)&largest.at[k], *(Pair*)&others.at[k]);
  } else {
    #pragma unroll
    for (int k = 0; k < N; k++) largest.at[k] = (T)fmaxf((float)largest.at[k], (float)others.at[k]);
  }
}

// The best cell that was met; of equal ones the first.
struct Best {
  unsigned rank = 0, index = 0;

  template <class T, int N>
  __device__ __forceinline__ void keep(const Pack<T, N>& own, const Pack<T, N>& largest, unsigned first, const Map& map) {
    #pragma unroll
    for (int k = 0; k < N; k++) {
      unsigned other = rank_among(own.at[k], largest.at[k], map);
      if (other > rank) rank = other, index = first + k;
    }
  }
  __device__ __forceinline__ Key key() const { return rank ? key_of(rank, index) : 0; }
};

// The best of some cells of a heatmap, N of them read at once; `first`, `cells` and classes are multiples of N.
template <int N, class T>
__device__ __forceinline__ Key best_cell(const T* heatmap, int first, int cells, const Map& map) {
  Best best;
  for (int i = first; i < first + cells && i < map.size(); i += N) {
    auto own = *(const Pack<T, N>*)(heatmap + i), largest = own;
    int cell = i / map.classes, y = cell / map.width, x = cell - y * map.width;
    if (map.only_peaks) {
      Pack<T, N> seen[9];  // all reads first, so that they are under way together
      #pragma unroll
      for (int n = 0; n < 9; n++) {  // beyond a border its own cells are looked at again
        int row = min(max(y + n / 3 - 1, 0), map.height - 1), column = min(max(x + n % 3 - 1, 0), map.width - 1);
        seen[n] = *(const Pack<T, N>*)(heatmap + i + ((row - y) * map.width + column - x) * map.classes);
      }
      #pragma unroll
      for (int n = 0; n < 9; n++) keep_larger(largest, seen[n]);
    }
    best.keep(own, largest, i, map);
  }
  return best.key();
}

// The same of a block's cells from `begin` on, where `columns` has the largest of each cell, the one above and the one
// below, from begin - classes on: neighbours are then read three times in all, not nine.
template <int N, class T>
__device__ __forceinline__ Key best_cell(const T* heatmap, const T* columns, int begin, const Map& map) {
  Best best;
  #pragma unroll
  for (int part = 0; part < PARTS; part += N) {
    unsigned at = threadIdx.x * PARTS + part, i = begin + at, x = i / (unsigned)map.classes % map.width;
    if (i >= map.size()) break;
    auto own = *(const Pack<T, N>*)(heatmap + i), largest = own;
    if (map.only_peaks) {
      largest = *(const Pack<T, N>*)(columns + at + map.classes);
      if (x > 0) keep_larger(largest, *(const Pack<T, N>*)(columns + at));
      if (x < map.width - 1) keep_larger(largest, *(const Pack<T, N>*)(columns + at + 2 * map.classes));
    }
    best.keep(own, largest, i, map);
  }
  return best.key();
}

// Block (tree, image) -> tree (B, trees, NODES). Shared memory, of peaks: CELLS + 2 * classes numbers T.
template <class T, int N>
__global__ void __launch_bounds__(THREADS) top_k_groups(
    const T* __restrict__ heatmap, unsigned long long* __restrict__ tree, int height, int width, int classes,
    bool only_peaks, bool logits) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Key keys[THREADS / PARTS];
  Map map = {height, width, classes, only_peaks, logits};
  T* columns = (T*)memory;
  int begin = blockIdx.x * CELLS, row = width * classes;
  heatmap += blockIdx.y * map.size();
  for (int i = threadIdx.x * N; only_peaks && i < CELLS + 2 * classes; i += THREADS * N) {
    int at = begin - classes + i;
    if (at < 0 || at >= map.size()) continue;
    auto best = *(const Pack<T, N>*)(heatmap + at);
    if (at >= row) keep_larger(best, *(const Pack<T, N>*)(heatmap + at - row));
    if (at + row < map.size()) keep_larger(best, *(const Pack<T, N>*)(heatmap + at + row));
    *(Pack<T, N>*)(columns + i) = best;
  }
  __syncthreads();
  Key best = best_cell<N>(heatmap, columns, begin, map);
  tree += (blockIdx.y * gridDim.x + blockIdx.x) * NODES;
  int node = threadIdx.x / PARTS, warp = threadIdx.x / warpSize;
  for (int nodes = THREADS / PARTS, number = NODES - nodes; nodes > 0; nodes /= PARTS, number /= PARTS) {
    if (warp * warpSize < nodes * PARTS) {
      for (int lane = 1; lane < PARTS; lane *= 2) {
        Key other = __shfl_xor_sync(~0u, best, lane);
        if (other > best) best = other;
      }
    }
    __syncthreads();  // whoever still reads the keys before
    if (threadIdx.x % PARTS == 0 && node < nodes) keys[node] = tree[number + node] = best;
    __syncthreads();
    if (threadIdx.x < nodes) best = keys[threadIdx.x];
  }
}

// Bitonic sort (Batcher 1968), largest first: runs of `length`, up and down in turn, are merged to runs twice as long.
// At distances up to 32 the 32 pairs of a warp lie in 64 keys of its own, and it need not wait for the other warps.
__device__ void sort(Key* keys, int size) {
  for (int length = 2; length <= size; length *= 2)
    for (int distance = length / 2; distance > 0; distance /= 2) {
      bool others = distance > 32 || (distance == 32 && length > 64);  // exchanged these keys just before, or will now
      if (others || length == 2) __syncthreads();
      else __syncwarp();
      for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
        int low = 2 * i - (i & (distance - 1)), high = low + distance;  // the i-th key whose bit `distance` is 0
        bool falling = (low & length) == 0;
        if ((keys[low] < keys[high]) == falling) {
          Key key = keys[low];
          keys[low] = keys[high];
          keys[high] = key;
        }
      }
    }
  __syncthreads();
}

// Append the keys of those threads that have one to `filled` keys, in their order, and return how many there are then.
__device__ __forceinline__ int append(Key* keys, int filled, Key own) {
  __shared__ int found[CHUNK / 2 / 32];  // by each warp
  int warp = threadIdx.x / warpSize, lane = threadIdx.x % warpSize, at = filled;
  unsigned having = __ballot_sync(~0u, own > 0);
  if (lane == 0) found[warp] = __popc(having);
  __syncthreads();
  for (int other = 0; other < blockDim.x / warpSize; other++) {
    if (other < warp) at += found[other];
    filled += found[other];
  }
  if (own > 0) keys[at + __popc(having & ((1u << lane) - 1))] = own;
  __syncthreads();
  return filled;
}

// The best k of key(0) .. key(count - 1) come to be keys[0 .. k), best first; 0 where there are not so many. Those below
// `least`, which k of them reach, are left out before it is sorted.
template <class KeyOf>
__device__ __forceinline__ void keep_best(Key* keys, int k, int count, Key least, KeyOf key) {
  __syncthreads();  // whoever still writes what `key` reads
  for (int taken = 0, filled = 0; taken < count; taken += blockDim.x) {
    int i = taken + threadIdx.x;
    Key own = i < count ? key(i) : 0;
    filled = append(keys, filled, own >= least ? own : 0);
    bool last = taken + blockDim.x >= count;
    if (!last && filled + blockDim.x <= CHUNK) continue;
    int size = 2;
    while (size < max(k, filled)) size *= 2;
    for (int i = filled + threadIdx.x; i < size; i += blockDim.x) keys[i] = 0;
    sort(keys, size);
    filled = min(filled, k);
  }
}

// A block for each image, of whole warps -> scores float32, labels, y, x, each (B, k)
template <class T, int N>
__global__ void __launch_bounds__(CHUNK / 2, 1) top_k_cells(
    const T* __restrict__ heatmap, const unsigned long long* __restrict__ tree, float* __restrict__ scores,
    long long* __restrict__ labels, long long* __restrict__ y, long long* __restrict__ x, int trees, int height,
    int width, int classes, int k, bool only_peaks, bool logits) {
  __shared__ Key keys[CHUNK];
  __shared__ Key groups[CHUNK / 2];
  Map map = {height, width, classes, only_peaks, logits};
  heatmap += blockIdx.x * map.size();
  tree += blockIdx.x * trees * NODES;
  keep_best(keys, k, trees, 0, [&](int i) { return tree[i * NODES]; });
  for (int cells = CELLS / PARTS, number = 1; cells > 0; cells /= PARTS, number = PARTS * number + 1) {
    for (int i = threadIdx.x; i < k; i += blockDim.x) groups[i] = keys[i];
    keep_best(keys, k, PARTS * k, keys[k - 1], [&](int i) -> Key {  // the best of each group is one of its parts
      if (groups[i / PARTS] == 0) return 0;
      int group = index_of(groups[i / PARTS]) / (PARTS * cells), first = (group * PARTS + i % PARTS) * cells;
      if (cells > PARTS) return tree[first / CELLS * NODES + number + first % CELLS / cells];
      return cells == PARTS ? best_cell<N>(heatmap, first, PARTS, map) : best_cell<1>(heatmap, first, 1, map);
    });
  }
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    int index = index_of(keys[i]), cell = index / classes, at = blockIdx.x * k + i;
    scores[at] = score_of(keys[i]);
    labels[at] = index % classes;
    y[at] = cell / width;
    x[at] = cell % width;
  }
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

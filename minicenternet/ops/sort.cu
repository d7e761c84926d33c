// A stable sort of small integers. A gradient that sums whatever was taken from one place needs it: sorted by place, the
// numbers can be gathered, in a fixed order. Radix sort: by the lowest 5 bits of the keys, then by the next 5, and so on,
// each time in three launches, which leave equal digits in the order they had.
//
//   sort_count    counts[d, b] = how many keys of block b have digit d
//   sort_scan     of all counts the sum of those before, by one block: where block b's keys with digit d go
//   sort_move     each key there, and the number of the element that it is of
//   sort_first    at last, for each key where its elements begin
//
// A thread has 16 neighbouring keys, so that its threads, and they in turn, are in order.
constexpr int BITS = 5, DIGITS = 1 << BITS, THREADS = 128, EACH = 16, TILE = THREADS * EACH;  // TILE: keys of a block
constexpr int SCANNERS = 1024;

__device__ __forceinline__ int digit_of(int key, int shift) { return key >> shift & (DIGITS - 1); }

// Count the digits of each thread's keys in found[thread][digit].
__device__ __forceinline__ void count_digits(int (&found)[THREADS][DIGITS], const int* __restrict__ keys, int count,
                                             int shift) {
  for (int i = threadIdx.x; i < THREADS * DIGITS; i += THREADS) found[i / DIGITS][i % DIGITS] = 0;
  __syncthreads();
  int first = blockIdx.x * TILE + threadIdx.x * EACH;
  for (int i = first; i < min(first + EACH, count); i++) found[threadIdx.x][digit_of(keys[i], shift)]++;
  __syncthreads();
}

__global__ void sort_count(const int* __restrict__ keys, int* __restrict__ counts, int count, int shift) {
  __shared__ int found[THREADS][DIGITS];
  count_digits(found, keys, count, shift);
  if (threadIdx.x >= DIGITS) return;
  int sum = 0;
  for (int t = 0; t < THREADS; t++) sum += found[t][threadIdx.x];
  counts[threadIdx.x * gridDim.x + blockIdx.x] = sum;
}

// In place: counts[i] becomes the sum of all before it. A thread adds up its share, then knows those of all before.
__global__ void __launch_bounds__(SCANNERS) sort_scan(int* __restrict__ counts, int size) {
  __shared__ int sums[SCANNERS];
  int share = (size + SCANNERS - 1) / SCANNERS, first = min(size, (int)threadIdx.x * share);
  int last = min(size, first + share), own = 0;
  for (int i = first; i < last; i++) own += counts[i];
  sums[threadIdx.x] = own;
  for (int apart = 1; apart < SCANNERS; apart *= 2) {  // sums of 2, 4, 8, ... threads, up to this one
    __syncthreads();
    int before = threadIdx.x >= apart ? sums[threadIdx.x - apart] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
  }
  int before = sums[threadIdx.x] - own;
  for (int i = first; i < last; i++) {
    int here = counts[i];
    counts[i] = before;
    before += here;
  }
}

// numbers: of the elements that the keys are of; null in the first round, where key i is of element i.
__global__ void sort_move(const int* __restrict__ keys, const int* __restrict__ numbers, const int* __restrict__ counts,
                          int* __restrict__ moved_keys, int* __restrict__ moved_numbers, int count, int shift) {
  __shared__ int place[THREADS][DIGITS];  // where the next key of a thread with a digit goes
  count_digits(place, keys, count, shift);
  if (threadIdx.x < DIGITS) {
    int next = counts[threadIdx.x * gridDim.x + blockIdx.x];
    for (int t = 0; t < THREADS; t++) {
      int here = place[t][threadIdx.x];
      place[t][threadIdx.x] = next;
      next += here;
    }
  }
  __syncthreads();
  int first = blockIdx.x * TILE + threadIdx.x * EACH;
  for (int i = first; i < min(first + EACH, count); i++) {
    int to = place[threadIdx.x][digit_of(keys[i], shift)]++;
    moved_keys[to] = keys[i];
    moved_numbers[to] = numbers ? numbers[i] : i;
  }
}

// first[k] = how many of the sorted keys are less than k.
__global__ void sort_first(const int* __restrict__ keys, int* __restrict__ first, int count, int size) {
  int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= size) return;
  int low = 0, high = count;
  while (low < high) {
    int middle = low + (high - low) / 2;
    if (keys[middle] < k) low = middle + 1;
    else high = middle;
  }
  first[k] = low;
}

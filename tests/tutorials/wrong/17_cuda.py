"""Wrong answers to the exercises of tutorials/17_cuda.py, each in the place of the solution: the checks refuse them."""

WRONG = {
    "relu_backward": {
        "a bound that is off by one": '''
return """
__global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) dx[i] = y[i] > 0 ? dy[i] : 0;
}"""''',
        "no bound": '''
return """
__global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  dx[i] = y[i] > 0 ? dy[i] : 0;
}"""''',
        "the thread's number in its block only": '''
return """
__global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
  int i = threadIdx.x;
  if (i < n) dx[i] = y[i] > 0 ? dy[i] : 0;
}"""''',
        "the size of the grid for that of a block": '''
return """
__global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
  int i = blockIdx.x * gridDim.x + threadIdx.x;
  if (i < n) dx[i] = y[i] > 0 ? dy[i] : 0;
}"""''',
        "the gradient at y = 0 passes": '''
return """
__global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) dx[i] = y[i] >= 0 ? dy[i] : 0;
}"""''',
        "zeros are not written": '''
return """
__global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && y[i] > 0) dx[i] = dy[i];
}"""''',
        "it does not compile": '''
return """
__global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x
  if (i < n) dx[i] = y[i] > 0 ? dy[i] : 0;
}"""''',
    },
    "peaks": {
        "the row before continues at the left border": '''
return """
__global__ void peaks(const float* heatmap, float* kept, int height, int width) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  float own = heatmap[y * width + x], largest = own;
  for (int row = y - 1; row <= y + 1; row++)
    for (int column = x - 1; column <= x + 1; column++) {
      int i = row * width + column;
      if (i >= 0 && i < height * width) largest = max(largest, heatmap[i]);
    }
  kept[y * width + x] = own == largest ? own : 0;
}"""''',
        "equal neighbours are dropped": '''
return """
__global__ void peaks(const float* heatmap, float* kept, int height, int width) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  float own = heatmap[y * width + x], largest = 0;
  for (int row = max(y - 1, 0); row <= min(y + 1, height - 1); row++)
    for (int column = max(x - 1, 0); column <= min(x + 1, width - 1); column++)
      if (row != y || column != x) largest = max(largest, heatmap[row * width + column]);
  kept[y * width + x] = own > largest ? own : 0;
}"""''',
        "rows and columns exchanged": '''
return """
__global__ void peaks(const float* heatmap, float* kept, int height, int width) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  float own = heatmap[x * height + y], largest = own;
  for (int row = max(y - 1, 0); row <= min(y + 1, height - 1); row++)
    for (int column = max(x - 1, 0); column <= min(x + 1, width - 1); column++)
      largest = max(largest, heatmap[column * height + row]);
  kept[x * height + y] = own == largest ? own : 0;
}"""''',
        "a border that is off by one": '''
return """
__global__ void peaks(const float* heatmap, float* kept, int height, int width) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  float own = heatmap[y * width + x], largest = own;
  for (int row = max(y - 1, 0); row < min(y + 1, height - 1); row++)
    for (int column = max(x - 1, 0); column < min(x + 1, width - 1); column++)
      largest = max(largest, heatmap[row * width + column]);
  kept[y * width + x] = own == largest ? own : 0;
}"""''',
        "only four neighbours": '''
return """
__global__ void peaks(const float* heatmap, float* kept, int height, int width) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  float own = heatmap[y * width + x], largest = own;
  for (int row = max(y - 1, 0); row <= min(y + 1, height - 1); row++)
    largest = max(largest, heatmap[row * width + x]);
  for (int column = max(x - 1, 0); column <= min(x + 1, width - 1); column++)
    largest = max(largest, heatmap[y * width + column]);
  kept[y * width + x] = own == largest ? own : 0;
}"""''',
    },
    "sectors": {
        "lanes, not sectors": "return len(addresses)",
        "cache lines of 128 bytes": "return len({address // 128 for address in addresses})",
        "different addresses": "return len({int(address) for address in addresses})",
        "bytes wanted over 32": "return len({int(address) for address in addresses}) * 4 // 32 or 1",
        "sectors that begin at the first address": """
first = min(addresses)
return len({(address - first) // 32 for address in addresses})""",
        "all between the first and the last": "return max(addresses) // 32 - min(addresses) // 32 + 1",
    },
    "transpose": {
        "a missing barrier": '''
return """
__global__ void transpose(const float* x, float* y, int rows, int columns) {
  __shared__ float tile[32][33];
  int left = blockIdx.x * 32, top = blockIdx.y * 32, t = threadIdx.x;
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + t < columns && top + i < rows) tile[i][t] = x[(top + i) * columns + left + t];
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + i < columns && top + t < rows) y[(left + i) * rows + top + t] = tile[t][i];
}"""''',
        "writes that are not coalesced": '''
return """
__global__ void transpose(const float* x, float* y, int rows, int columns) {
  __shared__ float tile[32][33];
  int left = blockIdx.x * 32, top = blockIdx.y * 32, t = threadIdx.x;
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + t < columns && top + i < rows) tile[i][t] = x[(top + i) * columns + left + t];
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + t < columns && top + i < rows) y[(left + t) * rows + top + i] = tile[i][t];
}"""''',
        "a tile of 31 rows": '''
return """
__global__ void transpose(const float* x, float* y, int rows, int columns) {
  __shared__ float tile[31][33];
  int left = blockIdx.x * 32, top = blockIdx.y * 32, t = threadIdx.x;
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + t < columns && top + i < rows) tile[i][t] = x[(top + i) * columns + left + t];
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + i < columns && top + t < rows) y[(left + i) * rows + top + t] = tile[t][i];
}"""''',
        "the bounds of the first loop in the second": '''
return """
__global__ void transpose(const float* x, float* y, int rows, int columns) {
  __shared__ float tile[32][33];
  int left = blockIdx.x * 32, top = blockIdx.y * 32, t = threadIdx.x;
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + t < columns && top + i < rows) tile[i][t] = x[(top + i) * columns + left + t];
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8)
    if (left + t < columns && top + i < rows) y[(left + i) * rows + top + t] = tile[t][i];
}"""''',
        "no shared memory at all": '''
return """
__global__ void transpose(const float* x, float* y, int rows, int columns) {
  int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
  for (int i = 0; i < 32; i += 8)
    if (column < columns && row + i < rows) y[column * rows + row + i] = x[(row + i) * columns + column];
}"""''',
    },
    "block_sums": {
        "no barrier between the steps": '''
return """
__global__ void block_sums(const float* x, float* sums, int n) {
  __shared__ float s[256];
  int i = blockIdx.x * 256 + threadIdx.x;
  s[threadIdx.x] = i < n ? x[i] : 0;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2)
    if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
  if (threadIdx.x == 0) sums[blockIdx.x] = s[0];
}"""''',
        "places beyond n are not filled": '''
return """
__global__ void block_sums(const float* x, float* sums, int n) {
  __shared__ float s[256];
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i < n) s[threadIdx.x] = x[i];
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = s[0];
}"""''',
        "threads beyond n return before the barrier": '''
return """
__global__ void block_sums(const float* x, float* sums, int n) {
  __shared__ float s[256];
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  s[threadIdx.x] = x[i];
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = s[0];
}"""''',
        "the last step is left out": '''
return """
__global__ void block_sums(const float* x, float* sums, int n) {
  __shared__ float s[256];
  int i = blockIdx.x * 256 + threadIdx.x;
  s[threadIdx.x] = i < n ? x[i] : 0;
  for (int half = 128; half > 1; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = s[0];
}"""''',
        "barriers that the two halves do not share": '''
return """
__global__ void block_sums(const float* x, float* sums, int n) {
  __shared__ float s[256];
  int i = blockIdx.x * 256 + threadIdx.x;
  s[threadIdx.x] = i < n ? x[i] : 0;
  for (int half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      __syncthreads();
      s[threadIdx.x] += s[threadIdx.x + half];
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = s[0];
}"""''',
    },
}

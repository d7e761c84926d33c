"""Wrong answers to the exercises of tutorials/18_tensor_cores.py: the checks refuse them."""

WRONG = {
    "implicit_index": {
        "the stride is forgotten": """
b, pixel = divmod(m, out_size[0] * out_size[1])
i, j = divmod(pixel, out_size[1])
tap, c = divmod(d, x_shape[3])
u, v = divmod(tap, kernel)
row, column = i + u - padding, j + v - padding
if not (0 <= row < x_shape[1] and 0 <= column < x_shape[2]):
    return None
return b, row, column, c""",
        "the padding has the wrong sign": """
b, pixel = divmod(m, out_size[0] * out_size[1])
i, j = divmod(pixel, out_size[1])
tap, c = divmod(d, x_shape[3])
u, v = divmod(tap, kernel)
row, column = stride * i + u + padding, stride * j + v + padding
if not (0 <= row < x_shape[1] and 0 <= column < x_shape[2]):
    return None
return b, row, column, c""",
        "channels are counted first, as the weight lies": """
b, pixel = divmod(m, out_size[0] * out_size[1])
i, j = divmod(pixel, out_size[1])
c, tap = divmod(d, kernel * kernel)
u, v = divmod(tap, kernel)
row, column = stride * i + u - padding, stride * j + v - padding
if not (0 <= row < x_shape[1] and 0 <= column < x_shape[2]):
    return None
return b, row, column, c""",
        "no border: negative indices count from the end": """
b, pixel = divmod(m, out_size[0] * out_size[1])
i, j = divmod(pixel, out_size[1])
tap, c = divmod(d, x_shape[3])
u, v = divmod(tap, kernel)
return b, stride * i + u - padding, stride * j + v - padding, c""",
        "a border that is off by one": """
b, pixel = divmod(m, out_size[0] * out_size[1])
i, j = divmod(pixel, out_size[1])
tap, c = divmod(d, x_shape[3])
u, v = divmod(tap, kernel)
row, column = stride * i + u - padding, stride * j + v - padding
if not (0 <= row <= x_shape[1] and 0 <= column <= x_shape[2]):
    return None
return b, row, column, c""",
        "pixels counted by the input's width": """
b, pixel = divmod(m, x_shape[1] * x_shape[2])
i, j = divmod(pixel, x_shape[2])
tap, c = divmod(d, x_shape[3])
u, v = divmod(tap, kernel)
row, column = stride * i + u - padding, stride * j + v - padding
if not (0 <= row < x_shape[1] and 0 <= column < x_shape[2]):
    return None
return b, row, column, c""",
    },
    "multiply": {
        "a[1] and a[2] exchanged": '''
return """
__device__ uint32_t tf32(float value) { return round_to_tf32(__float_as_uint(value)); }

__global__ void multiply(const float* a, const float* b, float* d) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t words[4] = {tf32(a[8 * g + t]), tf32(a[8 * g + t + 4]),
                       tf32(a[8 * (g + 8) + t]), tf32(a[8 * (g + 8) + t + 4])};
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  mma<float>(d0, d1, d2, d3, words, tf32(b[8 * g + t]), tf32(b[8 * g + t + 4]));
  d[8 * g + 2 * t] = d0;
  d[8 * g + 2 * t + 1] = d1;
  d[8 * (g + 8) + 2 * t] = d2;
  d[8 * (g + 8) + 2 * t + 1] = d3;
}"""''',
        "B by rows": '''
return """
__device__ uint32_t tf32(float value) { return round_to_tf32(__float_as_uint(value)); }

__global__ void multiply(const float* a, const float* b, float* d) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t words[4] = {tf32(a[8 * g + t]), tf32(a[8 * (g + 8) + t]),
                       tf32(a[8 * g + t + 4]), tf32(a[8 * (g + 8) + t + 4])};
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  mma<float>(d0, d1, d2, d3, words, tf32(b[8 * t + g]), tf32(b[8 * (t + 4) + g]));
  d[8 * g + 2 * t] = d0;
  d[8 * g + 2 * t + 1] = d1;
  d[8 * (g + 8) + 2 * t] = d2;
  d[8 * (g + 8) + 2 * t + 1] = d3;
}"""''',
        "D held as A is": '''
return """
__device__ uint32_t tf32(float value) { return round_to_tf32(__float_as_uint(value)); }

__global__ void multiply(const float* a, const float* b, float* d) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t words[4] = {tf32(a[8 * g + t]), tf32(a[8 * (g + 8) + t]),
                       tf32(a[8 * g + t + 4]), tf32(a[8 * (g + 8) + t + 4])};
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  mma<float>(d0, d1, d2, d3, words, tf32(b[8 * g + t]), tf32(b[8 * g + t + 4]));
  d[8 * g + t] = d0;
  d[8 * (g + 8) + t] = d1;
  d[8 * g + t + 4] = d2;
  d[8 * (g + 8) + t + 4] = d3;
}"""''',
        "not rounded: the tensor cores cut off": '''
return """
__device__ uint32_t tf32(float value) { return __float_as_uint(value); }

__global__ void multiply(const float* a, const float* b, float* d) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t words[4] = {tf32(a[8 * g + t]), tf32(a[8 * (g + 8) + t]),
                       tf32(a[8 * g + t + 4]), tf32(a[8 * (g + 8) + t + 4])};
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  mma<float>(d0, d1, d2, d3, words, tf32(b[8 * g + t]), tf32(b[8 * g + t + 4]));
  d[8 * g + 2 * t] = d0;
  d[8 * g + 2 * t + 1] = d1;
  d[8 * (g + 8) + 2 * t] = d2;
  d[8 * (g + 8) + 2 * t + 1] = d3;
}"""''',
        "lanes in a branch: not the whole warp": '''
return """
__device__ uint32_t tf32(float value) { return round_to_tf32(__float_as_uint(value)); }

__global__ void multiply(const float* a, const float* b, float* d) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t words[4] = {tf32(a[8 * g + t]), tf32(a[8 * (g + 8) + t]),
                       tf32(a[8 * g + t + 4]), tf32(a[8 * (g + 8) + t + 4])};
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  if (g < 4) mma<float>(d0, d1, d2, d3, words, tf32(b[8 * g + t]), tf32(b[8 * g + t + 4]));
  else __syncwarp();
  d[8 * g + 2 * t] = d0;
  d[8 * g + 2 * t + 1] = d1;
  d[8 * (g + 8) + 2 * t] = d2;
  d[8 * (g + 8) + 2 * t + 1] = d3;
}"""''',
    },
    "main_loop": {
        "a wait that is one group short": '''
return """
for (int step = 0; step < STAGES - 1; step++) copy(step);
for (int step = 0; step < STEPS; step++) {
  cp_async_wait<STAGES - 1>();
  __syncthreads();
  copy(step + STAGES - 1);
  multiply(step);
}"""''',
        "a wait that comes after the multiplication": '''
return """
for (int step = 0; step < STAGES - 1; step++) copy(step);
for (int step = 0; step < STEPS; step++) {
  copy(step + STAGES - 1);
  multiply(step);
  cp_async_wait<STAGES - 2>();
  __syncthreads();
}"""''',
        "a missing barrier": '''
return """
for (int step = 0; step < STAGES - 1; step++) copy(step);
for (int step = 0; step < STEPS; step++) {
  cp_async_wait<STAGES - 2>();
  copy(step + STAGES - 1);
  multiply(step);
}"""''',
        "a barrier for a wait": '''
return """
for (int step = 0; step < STAGES - 1; step++) copy(step);
for (int step = 0; step < STEPS; step++) {
  __syncthreads();
  copy(step + STAGES - 1);
  multiply(step);
}"""''',
        "nothing is under way before the first step": '''
return """
for (int step = 0; step < STEPS; step++) {
  cp_async_wait<STAGES - 2>();
  __syncthreads();
  copy(step + STAGES - 1);
  multiply(step);
}"""''',
        "the last step is left out": '''
return """
for (int step = 0; step < STAGES - 1; step++) copy(step);
for (int step = 0; step < STEPS - 1; step++) {
  cp_async_wait<STAGES - 2>();
  __syncthreads();
  copy(step + STAGES - 1);
  multiply(step);
}"""''',
    },
    "blocks_per_processor": {
        "registers are forgotten": """
warps = math.ceil(threads / 32)
return min(LIMITS["threads"] // (32 * warps), LIMITS["blocks"], LIMITS["shared"] // (shared + 1024))""",
        "threads are not rounded up to warps": """
return min(
    LIMITS["threads"] // threads,
    LIMITS["blocks"],
    LIMITS["registers"] // (threads * registers),
    LIMITS["shared"] // (shared + 1024),
)""",
        "registers of a warp are not rounded up": """
warps = math.ceil(threads / 32)
return min(
    LIMITS["threads"] // (32 * warps),
    LIMITS["blocks"],
    LIMITS["registers"] // (32 * warps * registers),
    LIMITS["shared"] // (shared + 1024),
)""",
        "the kilobyte that is kept is forgotten": """
warps = math.ceil(threads / 32)
registers_of_warp = math.ceil(32 * registers / 256) * 256
return min(
    LIMITS["threads"] // (32 * warps),
    LIMITS["blocks"],
    LIMITS["registers"] // (registers_of_warp * warps),
    LIMITS["shared"] // max(shared, 1),
)""",
        "no limit on the number of blocks": """
warps = math.ceil(threads / 32)
registers_of_warp = math.ceil(32 * registers / 256) * 256
return min(
    LIMITS["threads"] // (32 * warps),
    LIMITS["registers"] // (registers_of_warp * warps),
    LIMITS["shared"] // (shared + 1024),
)""",
        "warps for blocks": """
warps = math.ceil(threads / 32)
registers_of_warp = math.ceil(32 * registers / 256) * 256
return warps * min(
    LIMITS["threads"] // (32 * warps),
    LIMITS["blocks"],
    LIMITS["registers"] // (registers_of_warp * warps),
    LIMITS["shared"] // (shared + 1024),
)""",
    },
    "forward_work": {
        "a multiply-add is one operation": """
pixels = math.prod(x_shape[:3] if transposed else y_shape[:3])
weights = math.prod(weight_shape)
return pixels * weights, itemsize * (math.prod(x_shape) + math.prod(y_shape) + weights)""",
        "always the pixels of the output": """
weights = math.prod(weight_shape)
return 2 * math.prod(y_shape[:3]) * weights, itemsize * (math.prod(x_shape) + math.prod(y_shape) + weights)""",
        "always the pixels of the input": """
weights = math.prod(weight_shape)
return 2 * math.prod(x_shape[:3]) * weights, itemsize * (math.prod(x_shape) + math.prod(y_shape) + weights)""",
        "the weight is moved for each image": """
pixels = math.prod(x_shape[:3] if transposed else y_shape[:3])
weights = math.prod(weight_shape)
return 2 * pixels * weights, itemsize * (math.prod(x_shape) + math.prod(y_shape) + x_shape[0] * weights)""",
        "the output is not moved": """
pixels = math.prod(x_shape[:3] if transposed else y_shape[:3])
weights = math.prod(weight_shape)
return 2 * pixels * weights, itemsize * (math.prod(x_shape) + weights)""",
        "numbers for bytes": """
pixels = math.prod(x_shape[:3] if transposed else y_shape[:3])
weights = math.prod(weight_shape)
return 2 * pixels * weights, math.prod(x_shape) + math.prod(y_shape) + weights""",
    },
}

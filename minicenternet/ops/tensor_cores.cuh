// The instructions of the tensor cores and of the copies that feed them: the only inline PTX of the package.
// On a machine without a GPU the tests put a twin in plain C++ in the place of each.
//
// A warp multiplies tiles by mma, m16n8:  D (16 x 8, float32) += A (16 x k) B (k x 8), a row of A or column of B being
// 8 words of 32 bits: k = 8 values of tf32, or k = 16 of half or bfloat16, two to a word. With g = lane / 4 and
// t = lane % 4, a lane holds
//
//                 A, 16 rows of 8 words       B, 8 columns of 8 words     D, 16 x 8
//        row g    | a[0]: t | a[2]: t+4 |     column g                    row g    | d0: 2t | d1: 2t+1 |
//        row g+8  | a[1]: t | a[3]: t+4 |     | b0: t | b1: t+4 |         row g+8  | d2: 2t | d3: 2t+1 |
//
// On compute capability 9.0 (compiled for sm_90a), four warps, a warpgroup, multiply by wgmma:  D (64 x N) += A (64 x k)
// B (k x N), k as above. They read A and B from shared memory while the threads go on. A row of A or column of B is
// 8 words of the 32 in a row of a tile, whose chunks of 16 bytes lie `swizzled`: 8 rows read at once are in different
// banks. A tile begins at a multiple of 1024 bytes. Warp w of the four has rows 16w to 16w + 15 of D, and of each 8
// columns j what a lane holds of an mma's D: d[4j] to d[4j + 3].
#pragma once
__device__ __forceinline__ int swizzled(int row, int chunk) { return chunk ^ row % 8; }

#ifdef CUDA_ON_CPU
#include <tensor_cores_on_cpu.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef unsigned int uint32_t;

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return (unsigned)__cvta_generic_to_shared(pointer);
}

// Begin to copy 16 bytes from global to shared memory, zeros where !inside; both addresses are multiples of 16 bytes.
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(shared)), "l"(global), "r"(inside ? 16 : 0) : "memory");
}

// The same by way of the L1 cache, for what neighbouring threads or steps copy again.
__device__ __forceinline__ void cp_async_cached(void* shared, const void* global, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(shared)), "l"(global), "r"(inside ? 16 : 0) : "memory");
}

// The copies begun since the last commit are a group.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most N of this thread's groups are still under way. (Other threads see the copies after a barrier.)
template <int N>
__device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

// Four matrices of 8 rows of 4 words: lane 8q + r gives the address of row r of matrix q; r[q] becomes word t of row g.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// The same of 8 x 8 numbers of 16 bits, transposed: r[q] becomes numbers 2t and 2t+1 of column g.
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// Round the bits of a float32 to tf32, 10 bits of mantissa, to nearest. (The tensor cores alone would cut them off.)
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// D += A B for numbers of type T, of which float means tf32.
template <class T>
__device__ __forceinline__ void mma(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1);

#define MMA(TYPE, INSTRUCTION)                                                                                     \
  template <>                                                                                                      \
  __device__ __forceinline__ void mma<TYPE>(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4],    \
                                            uint32_t b0, uint32_t b1) {                                            \
    asm volatile(INSTRUCTION " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                              \
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                  \
  }
MMA(float, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
MMA(__half, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
MMA(__nv_bfloat16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
#undef MMA

// Let the tensor cores see what this thread's copies have written, once they have landed.
__device__ __forceinline__ void fence_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before a warpgroup's first multiplication, and wherever its threads have touched the sums.
__device__ __forceinline__ void warpgroup_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// The multiplications begun since the last commit are a group.
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most N of the warpgroup's groups are under way: what they read may then be written over.
template <int N>
__device__ __forceinline__ void warpgroup_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }

// Wait for all of them: the sums are ready. (The compiler must not read them earlier.)
template <int TILES, int SUMS>
__device__ __forceinline__ void warpgroup_finish(float (&sum)[TILES][SUMS]) {
  warpgroup_wait<0>();
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int j = 0; j < SUMS; j++) asm volatile("" : "+f"(sum[i][j]) :: "memory");
}

// Begin D += A B, N = 2 * SUMS; a, b: descriptors, see `matrix`.
template <class T, bool TRANSPOSED, int SUMS>
__device__ __forceinline__ void wgmma(float (&d)[SUMS], unsigned long long a, unsigned long long b);

// The instruction names every sum and every register of a sum: spelled out for 32 to 128 of them.
#define TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define NAMES_30 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," TEN(1) TEN(2)
#define NAMES_60 NAMES_30 TEN(3) TEN(4) TEN(5)
#define NAMES_90 NAMES_60 TEN(6) TEN(7) TEN(8)
#define NAMES_120 NAMES_90 TEN(9) TEN(10) TEN(11)
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_16(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
#define SUMS_32 SUMS_16(0), SUMS_16(16)
#define SUMS_64 SUMS_32, SUMS_16(32), SUMS_16(48)
#define SUMS_96 SUMS_64, SUMS_16(64), SUMS_16(80)
#define SUMS_128 SUMS_96, SUMS_16(96), SUMS_16(112)
#define WGMMA(TYPE, TRANSPOSED, SUMS, INSTRUCTION, A, B, END)                                                      \
  template <>                                                                                                      \
  __device__ __forceinline__ void wgmma<TYPE, TRANSPOSED>(float (&d)[SUMS], unsigned long long a,                  \
                                                          unsigned long long b) {                                  \
    asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned." INSTRUCTION              \
                 " {" NAMES_##SUMS "}, %" #A ", %" #B ", add, 1, 1" END "; }"                                      \
                 : SUMS_##SUMS : "l"(a), "l"(b) : "memory");                                                       \
  }
#define NAMES_32 NAMES_30 "%30,%31"
#define NAMES_64 NAMES_60 "%60,%61,%62,%63"
#define NAMES_96 NAMES_90 "%90,%91,%92,%93,%94,%95"
#define NAMES_128 NAMES_120 "%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMAS(TYPE, TRANSPOSED, K_AND_TYPES, END)                                        \
  WGMMA(TYPE, TRANSPOSED, 32, "m64n64" K_AND_TYPES, 32, 33, END)                          \
  WGMMA(TYPE, TRANSPOSED, 64, "m64n128" K_AND_TYPES, 64, 65, END)                         \
  WGMMA(TYPE, TRANSPOSED, 96, "m64n192" K_AND_TYPES, 96, 97, END)                         \
  WGMMA(TYPE, TRANSPOSED, 128, "m64n256" K_AND_TYPES, 128, 129, END)
WGMMAS(float, false, "k8.f32.tf32.tf32", "")
WGMMAS(__half, false, "k16.f32.f16.f16", ", 0, 0")
WGMMAS(__half, true, "k16.f32.f16.f16", ", 1, 1")
WGMMAS(__nv_bfloat16, false, "k16.f32.bf16.bf16", ", 0, 0")
WGMMAS(__nv_bfloat16, true, "k16.f32.bf16.bf16", ", 1, 1")
#endif

// What wgmma is told of a matrix, in units of 16 bytes: its address; how far its next 64 columns are, where it is
// transposed; 1024 bytes from 8 rows to the next 8. And that the 128 bytes of a row are swizzled (1 << 62).
__device__ __forceinline__ unsigned long long matrix(const void* row, unsigned across = 16) {
  return (shared_address(row) & 0x3ffff) >> 4 | (unsigned long long)(across >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

// Begin D += A B for numbers of type T, of which float means tf32; a, b: the first of their rows.
template <class T, int SUMS>
__device__ __forceinline__ void warpgroup_mma(float (&d)[SUMS], const void* a, const void* b) {
  wgmma<T, false>(d, matrix(a), matrix(b));
}

// The same for numbers of 16 bits where rows are the depth, k of them: 64 rows of A or columns of B lie side by side,
// the next 64 of B `across` bytes away.
template <class T, int SUMS>
__device__ __forceinline__ void warpgroup_mma_transposed(float (&d)[SUMS], const void* a, const void* b, int across) {
  wgmma<T, true>(d, matrix(a), matrix(b, across));
}

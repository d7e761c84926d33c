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
#pragma once
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
#endif

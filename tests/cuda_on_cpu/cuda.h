// The names of CUDA C++ that kernels use, on top of simulator.h. There are no atomics here: our kernels have none,
// since every output is gathered by one thread in a fixed order.
#pragma once
#define CUDA_ON_CPU 1
#include <cmath>

#include "simulator.h"

// ---- qualifiers; `__shared__` is rewritten before compilation, see build.py -----------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __constant__ static
#ifndef __restrict__
#define __restrict__ __restrict
#endif

// ---- vectors --------------------------------------------------------------------------------------------------------

#define VECTORS(T, NAME)                                               \
  struct alignas(sizeof(T) * 2) NAME##2 { T x, y; };                   \
  struct alignas(sizeof(T) * 4) NAME##4 { T x, y, z, w; };             \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }           \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(unsigned, uint)
#undef VECTORS

// ---- where a thread is ----------------------------------------------------------------------------------------------

#define threadIdx (simulator::current->index)
#define blockIdx (simulator::block_index)
#define blockDim (simulator::block_size)
#define gridDim (simulator::grid_size)
constexpr int warpSize = simulator::WARP;

// ---- barriers, shuffles, votes: each knows its line -----------------------------------------------------------------

#define __syncthreads() simulator::block_barrier(__LINE__)
#define __syncwarp(...) simulator::sync_warp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) simulator::shuffle_from(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) simulator::shuffle_xor(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) simulator::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) simulator::shuffle_up(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, vote) simulator::ballot(mask, vote, __LINE__)
#define __any_sync(mask, vote) (simulator::ballot(mask, vote, __LINE__) != 0)
#define __all_sync(mask, vote) (simulator::ballot(mask, vote, __LINE__) == (mask))

namespace simulator {

inline void sync_warp(int line, unsigned mask = ALL_LANES) { warp_barrier(mask, line); }

inline int group_of(int width) { return current->lane & ~(width - 1); }  // its first lane

template <class T>
T shuffle_from(int line, unsigned mask, T value, int source, int width = WARP) {
  return shuffle(mask, value, group_of(width) + (source & (width - 1)), true, line);
}

template <class T>
T shuffle_xor(int line, unsigned mask, T value, int distance, int width = WARP) {
  int source = current->lane ^ distance;
  return shuffle(mask, value, source, source < group_of(width) + width, line);
}

template <class T>
T shuffle_down(int line, unsigned mask, T value, int distance, int width = WARP) {
  int source = current->lane + distance;
  return shuffle(mask, value, source, source < group_of(width) + width, line);
}

template <class T>
T shuffle_up(int line, unsigned mask, T value, int distance, int width = WARP) {
  int source = (int)current->lane - distance;
  return shuffle(mask, value, source, source >= group_of(width), line);
}

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

}  // namespace simulator

// ---- arithmetic -----------------------------------------------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0), 1); }
UNCHECKED inline double __dmul_rn(double a, double b) { return a * b; }  // never part of a fused multiply-add
UNCHECKED inline double __dsub_rn(double a, double b) { return a - b; }
UNCHECKED inline double __dadd_rn(double a, double b) { return a + b; }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __float_as_int(float x) { return simulator::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return simulator::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return simulator::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return simulator::bits_as<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T __ldg(const T* address) { return *address; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// Half precision as storage: a number is kept in 16 bits and computed with as float, rounded to nearest even.
#pragma once
#include "cuda.h"

// The F16C instructions by their builtins: <immintrin.h> takes g++ longer to read than all the rest.
typedef float FourFloats __attribute__((vector_size(16)));
typedef short EightShorts __attribute__((vector_size(16)));

struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(__builtin_ia32_vcvtps2ph(FourFloats{value}, 0)[0]) {}  // 0: to nearest even
  operator float() const { return __builtin_ia32_vcvtph2ps(EightShorts{(short)bits})[0]; }
};

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }

struct alignas(4) __half2 { __half x, y; };
inline __half2 __hmax2(__half2 a, __half2 b) { return {fmaxf(a.x, b.x), fmaxf(a.y, b.y)}; }
inline __half larger_or_nan(__half a, __half b) { return b > a || isnan((float)b) ? b : a; }
inline __half2 __hmax2_nan(__half2 a, __half2 b) { return {larger_or_nan(a.x, b.x), larger_or_nan(a.y, b.y)}; }

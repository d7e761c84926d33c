// bfloat16 as storage: the upper half of a float, rounded to nearest even; computed with as float.
#pragma once
#include "cuda.h"

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {
    unsigned whole = __float_as_uint(value);
    bits = isnan(value) ? 0x7fff : (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
  }
  operator float() const { return __uint_as_float((unsigned)bits << 16); }
};

inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }

struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) { return {fmaxf(a.x, b.x), fmaxf(a.y, b.y)}; }
inline __nv_bfloat16 larger_or_nan(__nv_bfloat16 a, __nv_bfloat16 b) { return b > a || isnan((float)b) ? b : a; }
inline __nv_bfloat162 __hmax2_nan(__nv_bfloat162 a, __nv_bfloat162 b) { return {larger_or_nan(a.x, b.x), larger_or_nan(a.y, b.y)}; }

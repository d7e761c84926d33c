// Half precision as storage: a number is kept in 16 bits and computed with as float, rounded to nearest even.
#pragma once
#include <immintrin.h>

struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)) {}
  operator float() const { return _cvtsh_ss(bits); }
};

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }

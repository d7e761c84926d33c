// Numbers are stored as T (float, __half or __nv_bfloat16) and computed with as float: (float)x[i], y[i] = (T)value.
#pragma once
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef INFINITY  // NVRTC brings no math.h
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

// N numbers that lie side by side, read and written in one instruction, 16 bytes at most: what a thread moves best.
template <class T, int N>
struct __align__(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

// Two numbers of 16 bits side by side, as CUDA computes with both at once.
template <class T>
struct PairOf {
  typedef float2 type;
};
template <>
struct PairOf<__half> {
  typedef __half2 type;
};
template <>
struct PairOf<__nv_bfloat16> {
  typedef __nv_bfloat162 type;
};

// 1 / (1 + e^-x), a rising function, to some last digits; where e^-x overflows, it is 0.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1, 1 + __expf(-x)); }

// Where element i of an array (B, height, width, channels) lies.
struct Place {
  int image, y, x, channel;
};

__device__ __forceinline__ Place place_of(int i, int height, int width, int channels) {
  int pixel = i / channels, row = pixel / width;
  return {row / height, row % height, pixel % width, i % channels};
}

// The element's index again.
__device__ __forceinline__ int index_of(Place at, int height, int width, int channels) {
  return ((at.image * height + at.y) * width + at.x) * channels + at.channel;
}

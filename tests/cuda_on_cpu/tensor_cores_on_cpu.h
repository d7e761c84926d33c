// Twins in plain C++ of the instructions in ops/tensor_cores.cuh, where each is described.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A copy lands when it is waited for and not earlier: who reads too soon finds the NaN of fresh shared memory. In reverse
// order of threads it lands at once: who still reads what was there finds what comes next. In random order both happen.
inline void cp_async(void* shared, const void* global, bool inside, int line = __builtin_LINE()) {
  simulator::async_copy(shared, global, 16, inside ? 16 : 0, line);
}
inline void cp_async_cached(void* shared, const void* global, bool inside, int line = __builtin_LINE()) {
  cp_async(shared, global, inside, line);
}
inline void cp_async_commit() { simulator::async_commit(); }
template <int N> inline void cp_async_wait() { simulator::async_wait(N); }

namespace simulator {
// Publish the address of a row; return those of all lanes. Then each lane reads its own words, so that the sanitizers
// see who read what.
inline const char* const* matrix_rows(const void* row, int line) {
  if ((uintptr_t)row % 16) fail("line %d: ldmatrix needs 16-byte alignment", line);
  return (const char* const*)exchange(ALL_LANES, row, line);
}
}  // namespace simulator

inline void ldmatrix(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
  auto* rows = simulator::matrix_rows(row, line);
  int g = simulator::current->lane / 4, t = simulator::current->lane % 4;
  for (int q = 0; q < 4; q++) r[q] = ((const uint32_t*)rows[8 * q + g])[t];
}
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
  auto* rows = simulator::matrix_rows(row, line);
  int g = simulator::current->lane / 4, t = simulator::current->lane % 4;
  for (int q = 0; q < 4; q++)
    r[q] = ((const uint16_t*)rows[8 * q + 2 * t])[g] | (uint32_t)((const uint16_t*)rows[8 * q + 2 * t + 1])[g] << 16;
}

inline uint32_t round_to_tf32(uint32_t bits) {
  bool finite = (bits & 0x7f800000) != 0x7f800000;
  return finite ? (bits + 0x1000) & ~0x1fffu : bits;
}

namespace simulator {
struct Mma {  // what a lane brings
  float* d[4];
  const uint32_t* a;
  uint32_t b[2];
};

template <class T>
float number(uint32_t word, int i) {  // number i of a word; tf32 has no more than 10 bits of mantissa
  if constexpr (sizeof(T) == 4) return __uint_as_float(word & ~0x1fffu);
  else return bits_as<T>(uint16_t(word >> 16 * i));
}

// All lanes have arrived: gather A and B from their registers, multiply, add to their sums.
template <class T>
UNCHECKED void mma_of_warp(void** lanes) {
  constexpr int N = 4 / sizeof(T), K = 8 * N;  // numbers in a word, in a row
  float a[16][K], b[K][8];
  for (int lane = 0; lane < 32; lane++) {
    auto& my = *(Mma*)lanes[lane];
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < N; i++) {
      for (int q = 0; q < 4; q++) a[g + 8 * (q % 2)][N * (t + 4 * (q / 2)) + i] = number<T>(my.a[q], i);
      for (int q = 0; q < 2; q++) b[N * (t + 4 * q) + i][g] = number<T>(my.b[q], i);
    }
  }
  for (int lane = 0; lane < 32; lane++)
    for (int q = 0; q < 4; q++) {
      int row = lane / 4 + 8 * (q / 2), column = 2 * (lane % 4) + q % 2;
      float sum = 0;
      for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
      *((Mma*)lanes[lane])->d[q] += sum;
    }
}
}  // namespace simulator

template <class T>
UNCHECKED inline void mma(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                          int line = __builtin_LINE()) {
  simulator::Mma lane{{&d0, &d1, &d2, &d3}, a, {b0, b1}};
  simulator::collective(&lane, simulator::mma_of_warp<T>, line);
}

inline void fence_copies() { simulator::fence(); }
inline void warpgroup_begin() {}
inline void warpgroup_commit() { simulator::async_product_commit(); }
template <int N> inline void warpgroup_wait() { simulator::async_product_wait(N); }
template <int TILES, int SUMS> inline void warpgroup_finish(float (&)[TILES][SUMS]) { warpgroup_wait<0>(); }

inline unsigned shared_address(const void* pointer) { return (const char*)pointer - simulator::arena; }

namespace simulator {
struct Matrix {  // as a descriptor tells of it
  const char* begin;
  unsigned across, down, swizzle, offset;

  Matrix(uint64_t descriptor) {
    auto field = [=](int bit, int width) { return unsigned(descriptor >> bit & ((1u << width) - 1)); };
    begin = arena + field(0, 14) * 16, across = field(16, 14) * 16, down = field(32, 14) * 16;
    offset = field(49, 3), swizzle = field(62, 2);
  }
  // The number at a row (column of B) and a depth. The hardware swizzles by bits of the address.
  template <class T, bool TRANSPOSED>
  float at(int row, int k) const {
    unsigned place = TRANSPOSED ? row / 64 * across + k / 8 * down + k % 8 * 128 + row % 64 * sizeof(T)
                                : row / 8 * down + row % 8 * 128 + k * sizeof(T);
    uintptr_t address = (uintptr_t)begin + place;
    address ^= (address >> 7 & 7) << 4;
    if constexpr (sizeof(T) == 4) return number<T>(*(const uint32_t*)address, 0);
    else return (float)*(const T*)address;
  }
};

// A lane's sums of D (64 x 2 SUMS) += A B.
template <class T, int SUMS, bool TRANSPOSED>
void multiply_warpgroup(float* d, uint64_t of_a, uint64_t of_b) {
  constexpr int K = 32 / sizeof(T);
  const Matrix a(of_a), b(of_b);
  if (a.swizzle != 1 || b.swizzle != 1 || a.offset || b.offset)
    return fail("wgmma: of the layouts, the twin knows rows of 128 bytes, swizzled");
  int g = current->lane / 4, t = current->lane % 4;
  float rows[2][K], column[K];
  for (int q = 0; q < 2; q++)
    for (int k = 0; k < K; k++) rows[q][k] = a.at<T, TRANSPOSED>(current->warp % 4 * 16 + q * 8 + g, k);
  for (int j = 0; j < SUMS / 2; j++) {
    for (int k = 0; k < K; k++) column[k] = b.at<T, TRANSPOSED>(j / 2 * 8 + 2 * t + j % 2, k);
    for (int q = 0; q < 2; q++) {
      float sum = 0;
      for (int k = 0; k < K; k++) sum += rows[q][k] * column[k];
      d[j / 2 * 4 + q * 2 + j % 2] += sum;
    }
  }
}
}  // namespace simulator

template <class T, bool TRANSPOSED, int SUMS>
inline void wgmma(float (&d)[SUMS], unsigned long long a, unsigned long long b, int line = __builtin_LINE()) {
  simulator::async_product({simulator::multiply_warpgroup<T, SUMS, TRANSPOSED>, d, a, b}, line);
}

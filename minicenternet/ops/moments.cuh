// Mean and variance of some numbers, and of two such lots together (Chan, Golub and LeVeque 1979):
//
//   n = n₁ + n₂,   μ = μ₁ + (μ₂ - μ₁) n₂/n,   Σ² = Σ₁² + Σ₂² + (μ₂ - μ₁)² n₁n₂/n
//
// where Σ² is the sum of (x - μ)². No large numbers are subtracted from each other.
#pragma once

struct Moments {
  float count, mean, squares;  // squares: Σ²
};

__device__ __forceinline__ Moments combined(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  float count = a.count + b.count, apart = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

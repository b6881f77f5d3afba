// Passes over all logits, vectorised; the same bits with and without AVX2, and on devices.
#pragma once

#include <cstdint>

namespace longstride::model::sampling {

// Logits are handled in blocks of this many; the last may be shorter.
inline constexpr int32_t kBlock = 128;

// Maximum of each block, NaNs ignored; false where there is a NaN.
bool BlockMaxima(const float* logits, int32_t n, float* maxima);

// exp((logit - max) * scale) in whole units of 2^-kernels::kWeightBits, rounded down. `logit` <= `max`.
uint64_t Weight(float logit, float max, float scale);

// The sum of the weights of each block.
void BlockWeights(const float* logits, int32_t n, float max, float scale, uint64_t* sums);

// Sum over each block of exp((logit - max) * scale); an addend below about 1e-38 counts as 0.
void BlockExpSums(const float* logits, int32_t n, float max, float scale, double* sums);

// Sum over each block of exp(p - max) * (p - q), for p <= max: the terms of a Kullback-Leibler
// divergence between two rows of logits before they are normalised.
void BlockExpDifferences(const float* p, const float* q, int32_t n, float max, double* sums);

}  // namespace longstride::model::sampling

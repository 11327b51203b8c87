// Small matrix products in bfloat16 with float32 sums, and the functions around them, for AVX512-BF16.
//
// A "word" is a pair of bfloat16 values that lie next to each other along the sum of a product, the first in the lower
// half: what one lane of vdpbf16ps multiplies. Rows of a block come in eights and columns in sixteens; what is missing
// is filled up with zeros by whoever makes the block.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Sizes are given by -DWIDTH_GIVEN=.. and so on: loops of a known length are a tenth faster.
constexpr long WIDTH = WIDTH_GIVEN;
static_assert(WIDTH % 32 == 0, "whole vectors");

using Floats = __m512;
using bf16 = uint16_t;
using word = uint32_t;

constexpr long LANES = 16, ROWS = 8;

inline long rounded(long size, long grain) { return (size + grain - 1) / grain * grain; }

// Memory that is all zeros at first, aligned to cache lines, and given back at the end of the scope.
template <typename T>
struct Buffer {
    T* at;
    explicit Buffer(long size) {
        const size_t bytes = rounded((size > 0 ? size : 1) * static_cast<long>(sizeof(T)), 64);
        at = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (at == nullptr) throw std::bad_alloc();
        std::memset(at, 0, bytes);
    }
    ~Buffer() { std::free(at); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    operator T*() const { return at; }
};

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const bf16* from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store(bf16* to, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}
inline void add(float* to, Floats x) { store(to, _mm512_add_ps(load(to), x)); }

inline __m512i halves(const bf16* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// words[r / 2][c] = rows r and r + 1 of column c, for even r; the first row in the lower halves.
inline void pair_rows(const bf16* rows, long stride, long num_rows, long columns, word* words) {
    for (long r = 0; r < num_rows; r += 2)
        for (long c = 0; c < columns; c += LANES) {
            const bf16* first = rows + r * stride + c;
            const __m512i both = _mm512_or_si512(halves(first), _mm512_slli_epi32(halves(first + stride), 16));
            _mm512_storeu_si512(words + r / 2 * columns + c, both);
        }
}

// to[c][r] = from[r][c], 16 by 16.
inline void transpose(const word* from, long stride, word* to, long to_stride) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) a[r] = _mm512_loadu_si512(from + r * stride);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
        a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
        a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
        a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
        a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {  // a[r + 4 k] holds columns r, r + 4, r + 8, r + 12 of rows 4 k to 4 k + 3
        const __m512i low = _mm512_shuffle_i32x4(a[r], a[r + 4], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(a[r], a[r + 4], 0xDD);
        const __m512i lower = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0x88);
        const __m512i higher = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0xDD);
        _mm512_storeu_si512(to + r * to_stride, _mm512_shuffle_i32x4(low, lower, 0x88));
        _mm512_storeu_si512(to + (r + 4) * to_stride, _mm512_shuffle_i32x4(high, higher, 0x88));
        _mm512_storeu_si512(to + (r + 8) * to_stride, _mm512_shuffle_i32x4(low, lower, 0xDD));
        _mm512_storeu_si512(to + (r + 12) * to_stride, _mm512_shuffle_i32x4(high, higher, 0xDD));
    }
}

// words[c / 2][r] = columns c and c + 1 of row r, for even c.
inline void pair_columns(const bf16* rows, long stride, long num_rows, long columns, word* words, long words_stride) {
    const word* from = reinterpret_cast<const word*>(rows);
    const long whole_rows = num_rows / 16 * 16, whole_pairs = columns / 32 * 16;
    for (long r = 0; r < whole_rows; r += 16)
        for (long p = 0; p < whole_pairs; p += 16)
            transpose(from + r * (stride / 2) + p, stride / 2, words + p * words_stride + r, words_stride);
    for (long r = 0; r < num_rows; r++)
        for (long p = r < whole_rows ? whole_pairs : 0; p < columns / 2; p++)
            words[p * words_stride + r] = from[r * (stride / 2) + p];
}

// c[M][16 V] (+)= sum over p of a(m, p) * b(p, n); a(m, p) is a word at a + m * a_row + p * a_step, b(p, n) at b + p *
// b_stride + n. The sums stay in registers.
template <int M, int V>
inline void tile(const word* a, long a_row, long a_step, const word* b, long b_stride, long steps, float* c,
                 long c_stride, bool adds) {
    Floats sums[M][V];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[m][v] = adds ? load(c + m * c_stride + v * LANES) : _mm512_setzero_ps();
    for (long p = 0; p < steps; p++) {
        __m512bh right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_loadu_si512(b + p * b_stride + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[m * a_row + p * a_step]));
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[m][v] = _mm512_dpbf16_ps(sums[m][v], left, right[v]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(c + m * c_stride + v * LANES, sums[m][v]);
}

// The same for any number of rows in eights and columns in sixteens.
inline void multiply(const word* a, long a_row, long a_step, const word* b, long b_stride, long rows, long columns,
                     long steps, float* c, long c_stride, bool adds = false) {
    long n = 0;
    for (; n + 4 * LANES <= columns; n += 4 * LANES)
        for (long m = 0; m < rows; m += ROWS / 2)
            tile<ROWS / 2, 4>(a + m * a_row, a_row, a_step, b + n, b_stride, steps, c + m * c_stride + n, c_stride,
                              adds);
    for (; n + 2 * LANES <= columns; n += 2 * LANES)
        for (long m = 0; m < rows; m += ROWS)
            tile<ROWS, 2>(a + m * a_row, a_row, a_step, b + n, b_stride, steps, c + m * c_stride + n, c_stride, adds);
    if (n < columns)
        for (long m = 0; m < rows; m += ROWS)
            tile<ROWS, 1>(a + m * a_row, a_row, a_step, b + n, b_stride, steps, c + m * c_stride + n, c_stride, adds);
}

// exp by a polynomial for 2^fraction (Taylor to the sixth power, 1e-7) and the exponent put in afterwards.
inline Floats exponential(Floats x) {
    const Floats power = _mm512_mul_ps(x, all(1.44269504088896f));
    const Floats whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Floats rest = _mm512_sub_ps(power, whole);
    Floats sum = _mm512_fmadd_ps(all(1.540353039e-4f), rest, all(1.333355815e-3f));
    sum = _mm512_fmadd_ps(sum, rest, all(9.618129108e-3f));
    sum = _mm512_fmadd_ps(sum, rest, all(5.550410866e-2f));
    sum = _mm512_fmadd_ps(sum, rest, all(2.402265070e-1f));
    sum = _mm512_fmadd_ps(sum, rest, all(6.931471806e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(sum, rest, all(1.0f)), whole);
}

// x Phi(x) and its derivative Phi(x) + x phi(x), with erf by formula 7.1.26 of Abramowitz and Stegun (1.5e-7).
inline Floats gelu(Floats x, Floats* slope) {
    const Floats size = _mm512_mul_ps(_mm512_abs_ps(x), all(0.70710678118f));
    const Floats bell = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(size, size)));
    const Floats t = _mm512_div_ps(all(1.0f), _mm512_fmadd_ps(size, all(0.3275911f), all(1.0f)));
    Floats tail = _mm512_fmadd_ps(all(1.061405429f), t, all(-1.453152027f));
    tail = _mm512_fmadd_ps(tail, t, all(1.421413741f));
    tail = _mm512_fmadd_ps(tail, t, all(-0.284496736f));
    tail = _mm512_fmadd_ps(tail, t, all(0.254829592f));
    tail = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(tail, t), bell), all(0.5f));  // the mass beyond |x|
    const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const Floats mass = _mm512_mask_mov_ps(_mm512_sub_ps(all(1.0f), tail), below, tail);
    if (slope != nullptr) *slope = _mm512_fmadd_ps(_mm512_mul_ps(x, bell), all(0.39894228040f), mass);
    return _mm512_mul_ps(x, mass);
}

// Masks of dropout, which the backward pass makes again.
#pragma once

#include "tiles.h"

// Masks that hang on a seed and a place alone, so that the backward pass makes them again: the finaliser of splitmix64
// (Steele, Lea and Flood 2014) on a counter, whose eight bytes serve eight values. A value stays where its byte is at
// least `drop`.
struct Dropout {
    uint64_t seed;
    int drop;

    Floats scale() const { return all(256.0f / (256 - drop)); }

    // Of the 64 values of a row that begin at a column, a multiple of 64.
    uint64_t keeps(long row, long column) const {
        if (drop == 0) return ~0ull;
        const uint64_t place = static_cast<uint64_t>(row) * rounded(WIDTH, 64) + column;
        const __m512i step = _mm512_setr_epi64(1, 2, 3, 4, 5, 6, 7, 8);
        __m512i x = _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(place / 8)), step);
        x = _mm512_add_epi64(_mm512_mullo_epi64(x, constant(0x9E3779B97F4A7C15)), constant(seed));
        x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 30)), constant(0xBF58476D1CE4E5B9));
        x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 27)), constant(0x94D049BB133111EB));
        x = _mm512_xor_si512(x, _mm512_srli_epi64(x, 31));
        return _mm512_cmpge_epu8_mask(x, _mm512_set1_epi8(static_cast<char>(drop)));
    }

    static __m512i constant(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
};

// The sixteen bits of a mask of 64 that belong to column d.
inline __mmask16 part(uint64_t keeps, long d) { return static_cast<__mmask16>(keeps >> (d % 64)); }

// What a layer does to each row by itself: normalisation, and turning by position and time.
#pragma once

#include "dropout.h"

constexpr long HIDDEN = HIDDEN_GIVEN, HEADS = HEADS_GIVEN, HEAD = WIDTH / HEADS;
static_assert(WIDTH % 32 == 0 && HIDDEN % 32 == 0 && HEAD * HEADS == WIDTH && HEAD % 16 == 0, "whole vectors");

constexpr float NORM_EPSILON = 1e-5f;  // that of torch.nn.LayerNorm

struct Moments {
    float mean, inverse;  // inverse: 1 / standard deviation
};

inline Moments moments(const float* x) {
    Floats total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (long d = 0; d < WIDTH; d += LANES) total = _mm512_add_ps(total, load(x + d));
    const float mean = _mm512_reduce_add_ps(total) / WIDTH;
    for (long d = 0; d < WIDTH; d += LANES) {
        const Floats away = _mm512_sub_ps(load(x + d), all(mean));
        squares = _mm512_fmadd_ps(away, away, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / WIDTH;
    return {mean, 1.0f / __builtin_sqrtf(variance + NORM_EPSILON)};
}

inline Floats standard(const float* x, Moments of) {
    return _mm512_mul_ps(_mm512_sub_ps(load(x), all(of.mean)), all(of.inverse));
}

inline Moments normalise(const float* x, const float* scale, const float* shift, bf16* out) {
    const Moments of = moments(x);
    for (long d = 0; d < WIDTH; d += LANES)
        store(out + d, _mm512_fmadd_ps(standard(x + d, of), load(scale + d), load(shift + d)));
    return of;
}

// Adds to grad_x; grad_scale and grad_shift add up over rows.
inline void normalise_backward(const float* grad, const float* x, Moments of, const float* scale,
                               float* grad_x, float* grad_scale, float* grad_shift) {
    Floats total = _mm512_setzero_ps(), along = _mm512_setzero_ps();
    for (long d = 0; d < WIDTH; d += LANES) {
        const Floats g = load(grad + d), unit = standard(x + d, of), scaled = _mm512_mul_ps(g, load(scale + d));
        total = _mm512_add_ps(total, scaled);
        along = _mm512_fmadd_ps(scaled, unit, along);
        store(grad_scale + d, _mm512_fmadd_ps(g, unit, load(grad_scale + d)));
        add(grad_shift + d, g);
    }
    const Floats mean = all(_mm512_reduce_add_ps(total) / WIDTH), mean_along = all(_mm512_reduce_add_ps(along) / WIDTH);
    for (long d = 0; d < WIDTH; d += LANES) {
        const Floats scaled = _mm512_mul_ps(load(grad + d), load(scale + d));
        const Floats left = _mm512_sub_ps(_mm512_sub_ps(scaled, mean), _mm512_mul_ps(standard(x + d, of), mean_along));
        add(grad_x + d, _mm512_mul_ps(left, all(of.inverse)));
    }
}

// Pairs of neighbours times the complex numbers of `turn`, eight at a time.
inline Floats turned(Floats pairs, const float* turn) {
    const Floats by = load(turn), swapped = _mm512_permute_ps(pairs, 0xB1);
    return _mm512_fmaddsub_ps(pairs, _mm512_moveldup_ps(by), _mm512_mul_ps(swapped, _mm512_movehdup_ps(by)));
}
inline Floats turned_back(Floats pairs, const float* turn) {
    const Floats by = load(turn), swapped = _mm512_permute_ps(pairs, 0xB1);
    return _mm512_fmsubadd_ps(pairs, _mm512_moveldup_ps(by), _mm512_mul_ps(swapped, _mm512_movehdup_ps(by)));
}

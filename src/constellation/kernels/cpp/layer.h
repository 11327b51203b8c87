// The parts of a transformer's layer: its weights, and a block of rows between attention and the layer's end.
#pragma once

#include <vector>

#include "linear.h"
#include "rows.h"

enum Weight {
    NORM_ATTEND_SCALE, NORM_ATTEND_SHIFT, QKV_WEIGHT, QKV_BIAS, JOIN_WEIGHT, JOIN_BIAS, GATE_ATTEND,
    NORM_FEED_SCALE, NORM_FEED_SHIFT, UP_WEIGHT, UP_BIAS, DOWN_WEIGHT, DOWN_BIAS, GATE_FEED
};
const std::vector<long> SIZES = {
    WIDTH, WIDTH, 3 * WIDTH * WIDTH, 3 * WIDTH, WIDTH * WIDTH, WIDTH, WIDTH,
    WIDTH, WIDTH, WIDTH * HIDDEN, HIDDEN, HIDDEN * WIDTH, WIDTH, WIDTH
};

// The weights, which all parts read.
struct Layer {
    const float* const* weights;
    Linear qkv, join, up, down;
    Dropout attend, feed;

    Layer(const int64_t* sizes, uint64_t seed, const float* const* given, bool with_back)
        : weights(given),
          qkv(given[QKV_WEIGHT], given[QKV_BIAS], WIDTH, 3 * WIDTH, with_back),
          join(given[JOIN_WEIGHT], given[JOIN_BIAS], WIDTH, WIDTH, with_back),
          up(given[UP_WEIGHT], given[UP_BIAS], WIDTH, HIDDEN, with_back),
          down(given[DOWN_WEIGHT], given[DOWN_BIAS], HIDDEN, WIDTH, with_back),
          attend{seed, static_cast<int>(sizes[2])}, feed{seed ^ 0xD1B54A32D192ED03, static_cast<int>(sizes[2])} {}
};

// A block of rows on its way through the second half of the layer.
struct Half {
    const Layer& layer;
    Buffer<float> joined, after, raised, slope, lowered;
    Buffer<bf16> normed, active;
    Moments moments_of[BLOCK];

    explicit Half(const Layer& given)
        : layer(given), joined(BLOCK * WIDTH), after(BLOCK * WIDTH), raised(BLOCK * HIDDEN), slope(BLOCK * HIDDEN),
          lowered(BLOCK * WIDTH), normed(BLOCK * WIDTH), active(BLOCK * HIDDEN) {}

    // to = x + gate * dropout(branch + bias), and leaves dropout(branch + bias) in branch.
    void add_branch(const float* x, float* branch, const float* bias, const float* gate, const Dropout& dropout,
                    long row, float* to) const {
        uint64_t mask = 0;
        for (long d = 0; d < WIDTH; d += LANES) {
            if (d % 64 == 0) mask = dropout.keeps(row, d);
            const Floats kept = _mm512_mul_ps(_mm512_add_ps(load(branch + d), load(bias + d)), dropout.scale());
            const Floats left = _mm512_maskz_mov_ps(part(mask, d), kept);
            store(branch + d, left);
            store(to + d, _mm512_fmadd_ps(left, load(gate + d), load(x + d)));
        }
    }

    // The second half for rows [row, row + count) into `to`; keeps all that the way back needs.
    void fed(const float* x, const bf16* seen, long row, long count, float* to, bool with_slope) {
        const float *const *weights = layer.weights, *up_bias = layer.up.bias;
        const long filled = rounded(count, ROWS);
        layer.join.forward(seen, filled, joined);
        for (long r = 0; r < count; r++) {
            add_branch(x + r * WIDTH, joined + r * WIDTH, layer.join.bias, weights[GATE_ATTEND], layer.attend, row + r,
                       after + r * WIDTH);
            moments_of[r] = normalise(after + r * WIDTH, weights[NORM_FEED_SCALE], weights[NORM_FEED_SHIFT],
                                      normed + r * WIDTH);
        }
        layer.up.forward(normed, filled, raised);
        for (long r = 0; r < count; r++)
            for (long h = 0; h < HIDDEN; h += LANES) {
                const long at = r * HIDDEN + h;
                Floats steep;
                store(active + at, gelu(_mm512_add_ps(load(raised + at), load(up_bias + h)), &steep));
                if (with_slope) store(slope + at, steep);
            }
        layer.down.forward(active, filled, lowered);
        for (long r = 0; r < count; r++)
            add_branch(after + r * WIDTH, lowered + r * WIDTH, layer.down.bias, weights[GATE_FEED], layer.feed, row + r,
                       to + r * WIDTH);
    }

    // grad_branch = gate * dropout's scale * mask * grad, in both layouts; adds the gradients of gate and bias.
    void branch_backward(const float* grad, const float* branch, const float* gate, const Dropout& dropout, long row,
                         long count, float* grad_gate, float* grad_bias, bf16* grad_branch) const {
        for (long r = 0; r < count; r++) {
            uint64_t mask = 0;
            for (long d = 0; d < WIDTH; d += LANES) {
                const long at = r * WIDTH + d;
                if (d % 64 == 0) mask = dropout.keeps(row + r, d);
                const Floats g = load(grad + at);
                const Floats scaled = _mm512_mul_ps(_mm512_mul_ps(g, load(gate + d)), dropout.scale());
                const Floats of_branch = _mm512_maskz_mov_ps(part(mask, d), scaled);
                store(grad_gate + d, _mm512_fmadd_ps(g, load(branch + at), load(grad_gate + d)));
                add(grad_bias + d, of_branch);
                store(grad_branch + at, of_branch);
            }
        }
        std::memset(grad_branch + count * WIDTH, 0, (rounded(count, ROWS) - count) * WIDTH * sizeof(bf16));
    }
};

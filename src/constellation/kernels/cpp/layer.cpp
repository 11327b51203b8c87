// One layer of the transformer, forward and backward: blocks of rows that stay in the cache between its products, and
// attention journey by journey. See kernels/whole_layer.py for what it computes.
#include <algorithm>

#include "attention.h"
#include "rows.h"

namespace {

constexpr long BLOCK = 64;  // rows between two products

enum Weight {
    NORM_ATTEND_SCALE, NORM_ATTEND_SHIFT, QKV_WEIGHT, QKV_BIAS, JOIN_WEIGHT, JOIN_BIAS, GATE_ATTEND,
    NORM_FEED_SCALE, NORM_FEED_SHIFT, UP_WEIGHT, UP_BIAS, DOWN_WEIGHT, DOWN_BIAS, GATE_FEED
};

// The weights of a linear layer [out, in] as words: for x W^T summed over `in`, for the way back over `out`.
struct Linear {
    long in, out;
    const float* bias;
    Buffer<word> ahead, back;

    Linear(const float* weight, const float* given_bias, long in_width, long out_width, bool with_back)
        : in(in_width), out(out_width), bias(given_bias), ahead(in / 2 * out), back(with_back ? out / 2 * in : 0) {
        Buffer<bf16> rows(out * in);
        for (long at = 0; at < out * in; at += LANES) store(rows + at, load(weight + at));
        pair_columns(rows, in, out, in, ahead, out);
        if (with_back) pair_rows(rows, in, out, in, back.at);
    }
    // y [rows, out], without the bias.
    void forward(const bf16* x, long rows, float* y) const {
        multiply(reinterpret_cast<const word*>(x), in / 2, 1, ahead, out, rows, out, in / 2, y, out);
    }
    void backward(const bf16* grad, long rows, float* grad_x) const {
        multiply(reinterpret_cast<const word*>(grad), out / 2, 1, back, in, rows, in, out / 2, grad_x, in);
    }
    // Adds to grad_weight [out, in]; both factors as pairs of rows.
    void add_gradient(const word* grad, const word* x, long rows, float* grad_weight) const {
        multiply(grad, 1, out, x, in, out, in, rows / 2, grad_weight, in, true);
    }
};

struct Layer {
    const float* const* weights;
    Linear qkv, join, up, down;
    Dropout attend, feed;

    // A block of rows on its way through the second half of the layer.
    Buffer<float> joined, after, raised, slope, lowered;
    Buffer<bf16> normed, active;
    Moments moments_of[BLOCK];

    Layer(const int64_t* sizes, uint64_t seed, const float* const* given, bool with_back)
        : weights(given),
          qkv(given[QKV_WEIGHT], given[QKV_BIAS], WIDTH, 3 * WIDTH, with_back),
          join(given[JOIN_WEIGHT], given[JOIN_BIAS], WIDTH, WIDTH, with_back),
          up(given[UP_WEIGHT], given[UP_BIAS], WIDTH, HIDDEN, with_back),
          down(given[DOWN_WEIGHT], given[DOWN_BIAS], HIDDEN, WIDTH, with_back),
          attend{seed, static_cast<int>(sizes[2])}, feed{seed ^ 0xD1B54A32D192ED03, static_cast<int>(sizes[2])},
          joined(BLOCK * WIDTH), after(BLOCK * WIDTH), raised(BLOCK * HIDDEN), slope(BLOCK * HIDDEN),
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
        const long filled = rounded(count, ROWS);
        join.forward(seen, filled, joined);
        for (long r = 0; r < count; r++) {
            add_branch(x + r * WIDTH, joined + r * WIDTH, join.bias, weights[GATE_ATTEND], attend, row + r,
                       after + r * WIDTH);
            moments_of[r] = normalise(after + r * WIDTH, weights[NORM_FEED_SCALE], weights[NORM_FEED_SHIFT],
                                      normed + r * WIDTH);
        }
        up.forward(normed, filled, raised);
        for (long r = 0; r < count; r++)
            for (long h = 0; h < HIDDEN; h += LANES) {
                const long at = r * HIDDEN + h;
                Floats steep;
                store(active + at, gelu(_mm512_add_ps(load(raised + at), load(up.bias + h)), &steep));
                if (with_slope) store(slope + at, steep);
            }
        down.forward(active, filled, lowered);
        for (long r = 0; r < count; r++)
            add_branch(after + r * WIDTH, lowered + r * WIDTH, down.bias, weights[GATE_FEED], feed, row + r,
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

struct Pairs {
    Buffer<word> words;
    explicit Pairs(long columns) : words(BLOCK / 2 * columns) {}
    const word* of(const bf16* rows, long num_rows, long columns) {
        pair_rows(rows, columns, num_rows, columns, words);
        return words;
    }
};

long longest(const int64_t* offsets, long journeys) {
    long most = 0;
    for (long j = 0; j < journeys; j++) most = std::max<long>(most, offsets[j + 1] - offsets[j]);
    return most;
}

}  // namespace

// sizes: rows, journeys, drop. qkv [rows + 8, 3 WIDTH], seen [rows + 8, WIDTH]: the spare rows are
// zeros. log_sums [rows, HEADS].
extern "C" int layer_forward(const int64_t* sizes, uint64_t seed, const int64_t* offsets, const float* x,
                             const float* turn, const float* const* weights, bf16* qkv, bf16* seen, float* log_sums,
                             float* out) try {
    const long rows = sizes[0], journeys = sizes[1];
    Layer layer(sizes, seed, weights, false);
        Buffer<float> product(BLOCK * 3 * WIDTH);
    const Floats query_scale = all(1.0f / __builtin_sqrtf(static_cast<float>(HEAD)));
    for (long row = 0; row < rows; row += BLOCK) {
        const long count = std::min(BLOCK, rows - row);
        for (long r = 0; r < count; r++)
            normalise(x + (row + r) * WIDTH, weights[NORM_ATTEND_SCALE], weights[NORM_ATTEND_SHIFT],
                      layer.normed + r * WIDTH);
        layer.qkv.forward(layer.normed, rounded(count, ROWS), product);
        for (long r = 0; r < count; r++)
            for (long d = 0; d < 3 * WIDTH; d += LANES) {
                Floats y = _mm512_add_ps(load(product + r * 3 * WIDTH + d), load(layer.qkv.bias + d));
                if (d < 2 * WIDTH) y = turned(y, turn + (row + r) * HEAD + d % HEAD);
                if (d < WIDTH) y = _mm512_mul_ps(y, query_scale);
                store(qkv + (row + r) * 3 * WIDTH + d, y);
            }
    }
    Attention attention(longest(offsets, journeys));
    for (long j = 0; j < journeys; j++)
        for (long h = 0; h < HEADS; h++) {
            const long start = offsets[j], length = offsets[j + 1] - start;
            const bf16* q = qkv + start * 3 * WIDTH + h * HEAD;
            attention.forward(q, q + WIDTH, q + 2 * WIDTH, 3 * WIDTH, length, seen + start * WIDTH + h * HEAD,
                              WIDTH, log_sums + start * HEADS + h, HEADS);
        }
    for (long row = 0; row < rows; row += BLOCK)
        layer.fed(x + row * WIDTH, seen + row * WIDTH, row, std::min(BLOCK, rows - row), out + row * WIDTH, false);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// grad_x [rows, WIDTH] is written; `grads`, as `weights`, are added to. grad_qkv and grad_seen are scratch of the
// shapes of qkv and seen, with spare rows of zeros.
extern "C" int layer_backward(const int64_t* sizes, uint64_t seed, const int64_t* offsets, const float* x,
                              const float* turn, const float* const* weights, const bf16* qkv, const bf16* seen,
                              const float* log_sums, const float* grad_out, float* grad_x, float* const* grads,
                              bf16* grad_qkv, bf16* grad_seen) try {
    const long rows = sizes[0], journeys = sizes[1];
    Layer layer(sizes, seed, weights, true);
    Buffer<float> grad(BLOCK * std::max(WIDTH, HIDDEN)), out(BLOCK * WIDTH);
    Buffer<bf16> thin(BLOCK * WIDTH), wide(BLOCK * HIDDEN);
    Pairs left(std::max(3 * WIDTH, HIDDEN)), right(std::max(WIDTH, HIDDEN));
    for (long row = 0; row < rows; row += BLOCK) {
        const long count = std::min(BLOCK, rows - row), filled = rounded(count, ROWS);
        const float* grad_row = grad_out + row * WIDTH;
        float* to = grad_x + row * WIDTH;
        layer.fed(x + row * WIDTH, seen + row * WIDTH, row, count, out, true);
        layer.branch_backward(grad_row, layer.lowered, weights[GATE_FEED], layer.feed, row, count, grads[GATE_FEED],
                              grads[DOWN_BIAS], thin);
        layer.down.add_gradient(left.of(thin, filled, WIDTH), right.of(layer.active, filled, HIDDEN), filled,
                                grads[DOWN_WEIGHT]);
        layer.down.backward(thin, filled, grad);
        for (long r = 0; r < filled; r++)
            for (long h = 0; h < HIDDEN; h += LANES) {
                const long at = r * HIDDEN + h;
                const Floats g = r < count ? _mm512_mul_ps(load(grad + at), load(layer.slope + at)) : all(0.0f);
                add(grads[UP_BIAS] + h, g);
                store(wide + at, g);
            }
        layer.up.add_gradient(left.of(wide, filled, HIDDEN), right.of(layer.normed, filled, WIDTH), filled,
                              grads[UP_WEIGHT]);
        layer.up.backward(wide, filled, grad);
        std::memcpy(to, grad_row, count * WIDTH * sizeof(float));
        for (long r = 0; r < count; r++)
            normalise_backward(grad + r * WIDTH, layer.after + r * WIDTH, layer.moments_of[r],
                               weights[NORM_FEED_SCALE], to + r * WIDTH, grads[NORM_FEED_SCALE],
                               grads[NORM_FEED_SHIFT]);
        layer.branch_backward(to, layer.joined, weights[GATE_ATTEND], layer.attend, row, count, grads[GATE_ATTEND],
                              grads[JOIN_BIAS], thin);
        layer.join.add_gradient(left.of(thin, filled, WIDTH), right.of(seen + row * WIDTH, filled, WIDTH), filled,
                                grads[JOIN_WEIGHT]);
        layer.join.backward(thin, filled, grad);
        for (long at = 0; at < count * WIDTH; at += LANES) store(grad_seen + row * WIDTH + at, load(grad + at));
    }
    Attention attention(longest(offsets, journeys));
    const Floats query_scale = all(1.0f / __builtin_sqrtf(static_cast<float>(HEAD)));
    for (long j = 0; j < journeys; j++)
        for (long h = 0; h < HEADS; h++) {
            const long start = offsets[j], length = offsets[j + 1] - start, place = h * HEAD;
            const bf16* q = qkv + start * 3 * WIDTH + place;
            bf16* of_q = grad_qkv + start * 3 * WIDTH + place;
            const float* turn_here = turn + start * HEAD;
            const auto take = [&](long r, const float* found) {
                for (long d = 0; d < HEAD; d += LANES)
                    store(of_q + r * 3 * WIDTH + d,
                          _mm512_mul_ps(turned_back(load(found + d), turn_here + r * HEAD + d), query_scale));
            };
            attention.backward(q, q + WIDTH, q + 2 * WIDTH, 3 * WIDTH, length, seen + start * WIDTH + place,
                               grad_seen + start * WIDTH + place, WIDTH, log_sums + start * HEADS + h, HEADS, take);
            for (long r = 0; r < length; r++)
                for (long d = 0; d < HEAD; d += LANES) {
                    bf16* to = of_q + r * 3 * WIDTH + d;
                    const long at = r * HEAD + d;
                    store(to + WIDTH, turned_back(load(attention.grad_keys + at), turn_here + at));
                    store(to + 2 * WIDTH, load(attention.grad_values + at));
                }
        }
    for (long row = 0; row < rows; row += BLOCK) {
        const long count = std::min(BLOCK, rows - row), filled = rounded(count, ROWS);
        const bf16* of_qkv = grad_qkv + row * 3 * WIDTH;
        for (long r = 0; r < count; r++) {
            layer.moments_of[r] = normalise(x + (row + r) * WIDTH, weights[NORM_ATTEND_SCALE],
                                            weights[NORM_ATTEND_SHIFT], layer.normed + r * WIDTH);
            for (long d = 0; d < 3 * WIDTH; d += LANES) add(grads[QKV_BIAS] + d, load(of_qkv + r * 3 * WIDTH + d));
        }
        layer.qkv.add_gradient(left.of(of_qkv, filled, 3 * WIDTH), right.of(layer.normed, filled, WIDTH), filled,
                               grads[QKV_WEIGHT]);
        layer.qkv.backward(of_qkv, filled, grad);
        for (long r = 0; r < count; r++)
            normalise_backward(grad + r * WIDTH, x + (row + r) * WIDTH, layer.moments_of[r],
                               weights[NORM_ATTEND_SCALE], grad_x + (row + r) * WIDTH, grads[NORM_ATTEND_SCALE],
                               grads[NORM_ATTEND_SHIFT]);
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

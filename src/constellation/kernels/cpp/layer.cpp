// One layer of the transformer, forward and backward: blocks of rows that stay in the cache between its products, and
// attention journey by journey. See kernels/whole_layer.py for what it computes. Rows and journeys do not hang on each
// other, so threads share them; only the gradients of weights are sums over both.
#include "attention.h"
#include "layer.h"
#include "team.h"

namespace {

// Rows of a part, in whole blocks.
template <typename Take>
void each_block(long rows, long part, long parts, Take take) {
    const Span blocks(rounded(rows, BLOCK) / BLOCK, part, parts);
    for (long row = blocks.begin * BLOCK; row < std::min(blocks.end * BLOCK, rows); row += BLOCK)
        take(row, std::min(BLOCK, rows - row));
}

// Journeys at their heads, item = journey * HEADS + head, in parts of about the same work, each with its own scratch.
struct Journeys {
    const int64_t* offsets;
    std::vector<long> bounds;

    Journeys(const Team& team, const int64_t* given, long journeys) : offsets(given), bounds{0} {
        const long parts = team.free_parts(journeys * HEADS);
        double all_work = 0, done = 0;
        for (long j = 0; j < journeys; j++) all_work += HEADS * work(j);
        for (long item = 0; item < journeys * HEADS && static_cast<long>(bounds.size()) < parts; item++) {
            done += work(item / HEADS);
            if (done * parts >= all_work * bounds.size()) bounds.push_back(item + 1);
        }
        if (parts > 0) bounds.resize(parts, journeys * HEADS), bounds.push_back(journeys * HEADS);
    }
    long length(long journey) const { return offsets[journey + 1] - offsets[journey]; }
    // Pairs of events, and what each event costs by itself.
    double work(long journey) const { return static_cast<double>(length(journey)) * (length(journey) + 2 * QUERIES); }

    // take(attention, first row, length, head)
    template <typename Take>
    void each(const Team& team, Take take) const {
        team.each(bounds.size() - 1, [&](long part) {
            const long begin = bounds[part], end = bounds[part + 1];
            if (begin == end) return;
            long longest = 0;
            for (long j = begin / HEADS; j <= (end - 1) / HEADS; j++) longest = std::max(longest, length(j));
            Attention attention(longest);
            for (long item = begin; item < end; item++)
                take(attention, offsets[item / HEADS], length(item / HEADS), item % HEADS);
        });
    }
};

struct Forward {
    Half half;
    Buffer<float> product;
    explicit Forward(const Layer& layer) : half(layer), product(BLOCK * 3 * WIDTH) {}
};

struct Backward {
    Half half;
    Buffer<float> grad, out;
    Buffer<bf16> thin, wide;
    Pairs left, right;
    explicit Backward(const Layer& layer)
        : half(layer), grad(BLOCK * std::max(WIDTH, HIDDEN)), out(BLOCK * WIDTH), thin(BLOCK * WIDTH),
          wide(BLOCK * HIDDEN), left(std::max(3 * WIDTH, HIDDEN)), right(std::max(WIDTH, HIDDEN)) {}
};

Floats query_scale() { return all(1.0f / __builtin_sqrtf(static_cast<float>(HEAD))); }

}  // namespace

// sizes: rows, journeys, drop. qkv [rows + 8, 3 WIDTH], seen [rows + 8, WIDTH]: the spare rows are
// zeros. log_sums [rows, HEADS].
extern "C" int layer_forward(const Team* team, const int64_t* sizes, uint64_t seed, const int64_t* offsets,
                             const float* x, const float* turn, const float* const* weights, bf16* qkv, bf16* seen,
                             float* log_sums, float* out) try {
    const long rows = sizes[0], parts = team->free_parts(rounded(rows, BLOCK) / BLOCK);
    const Layer layer(sizes, seed, weights, false);
    PerPart<Forward> scratch(parts);
    const Floats scale = query_scale();
    team->each(parts, [&](long part) {
        Forward& mine = scratch.of(part, layer);
        each_block(rows, part, parts, [&](long row, long count) {
            for (long r = 0; r < count; r++)
                normalise(x + (row + r) * WIDTH, weights[NORM_ATTEND_SCALE], weights[NORM_ATTEND_SHIFT],
                          mine.half.normed + r * WIDTH);
            layer.qkv.forward(mine.half.normed, rounded(count, ROWS), mine.product);
            for (long r = 0; r < count; r++)
                for (long d = 0; d < 3 * WIDTH; d += LANES) {
                    Floats y = _mm512_add_ps(load(mine.product + r * 3 * WIDTH + d), load(layer.qkv.bias + d));
                    if (d < 2 * WIDTH) y = turned(y, turn + (row + r) * HEAD + d % HEAD);
                    if (d < WIDTH) y = _mm512_mul_ps(y, scale);
                    store(qkv + (row + r) * 3 * WIDTH + d, y);
                }
        });
    });
    Journeys(*team, offsets, sizes[1]).each(*team, [&](Attention& attention, long start, long length, long head) {
        const bf16* q = qkv + start * 3 * WIDTH + head * HEAD;
        attention.forward(q, q + WIDTH, q + 2 * WIDTH, 3 * WIDTH, length, seen + start * WIDTH + head * HEAD, WIDTH,
                          log_sums + start * HEADS + head, HEADS);
    });
    team->each(parts, [&](long part) {
        Half& half = scratch.of(part, layer).half;
        each_block(rows, part, parts, [&](long row, long count) {
            half.fed(x + row * WIDTH, seen + row * WIDTH, row, count, out + row * WIDTH, false);
        });
    });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// grad_x [rows, WIDTH] is written; `grads`, as `weights`, are added to. grad_qkv and grad_seen are scratch of the
// shapes of qkv and seen, with spare rows of zeros.
extern "C" int layer_backward(const Team* team, const int64_t* sizes, uint64_t seed, const int64_t* offsets,
                              const float* x, const float* turn, const float* const* weights, const bf16* qkv,
                              const bf16* seen, const float* log_sums, const float* grad_out, float* grad_x,
                              float* const* all_grads, bf16* grad_qkv, bf16* grad_seen) try {
    const long rows = sizes[0], parts = team->parts(rounded(rows, BLOCK) / BLOCK);
    const Layer layer(sizes, seed, weights, true);
    PerPart<Backward> scratch(parts);
    Sums sums({all_grads, all_grads + SIZES.size()}, SIZES, parts);
    team->each(parts, [&](long part) {
        Backward& mine = scratch.of(part, layer);
        Half& half = mine.half;
        float* const* grads = sums.of(part);
        each_block(rows, part, parts, [&](long row, long count) {
            const long filled = rounded(count, ROWS);
            const float* grad_row = grad_out + row * WIDTH;
            float *to = grad_x + row * WIDTH, *grad = mine.grad;
            half.fed(x + row * WIDTH, seen + row * WIDTH, row, count, mine.out, true);
            half.branch_backward(grad_row, half.lowered, weights[GATE_FEED], layer.feed, row, count, grads[GATE_FEED],
                                 grads[DOWN_BIAS], mine.thin);
            layer.down.add_gradient(mine.left.of(mine.thin, filled, WIDTH), mine.right.of(half.active, filled, HIDDEN),
                                    filled, grads[DOWN_WEIGHT]);
            layer.down.backward(mine.thin, filled, grad);
            for (long r = 0; r < filled; r++)
                for (long h = 0; h < HIDDEN; h += LANES) {
                    const long at = r * HIDDEN + h;
                    const Floats g = r < count ? _mm512_mul_ps(load(grad + at), load(half.slope + at)) : all(0.0f);
                    add(grads[UP_BIAS] + h, g);
                    store(mine.wide + at, g);
                }
            layer.up.add_gradient(mine.left.of(mine.wide, filled, HIDDEN), mine.right.of(half.normed, filled, WIDTH),
                                  filled, grads[UP_WEIGHT]);
            layer.up.backward(mine.wide, filled, grad);
            std::memcpy(to, grad_row, count * WIDTH * sizeof(float));
            for (long r = 0; r < count; r++)
                normalise_backward(grad + r * WIDTH, half.after + r * WIDTH, half.moments_of[r],
                                   weights[NORM_FEED_SCALE], to + r * WIDTH, grads[NORM_FEED_SCALE],
                                   grads[NORM_FEED_SHIFT]);
            half.branch_backward(to, half.joined, weights[GATE_ATTEND], layer.attend, row, count, grads[GATE_ATTEND],
                                 grads[JOIN_BIAS], mine.thin);
            layer.join.add_gradient(mine.left.of(mine.thin, filled, WIDTH),
                                    mine.right.of(seen + row * WIDTH, filled, WIDTH), filled, grads[JOIN_WEIGHT]);
            layer.join.backward(mine.thin, filled, grad);
            for (long at = 0; at < count * WIDTH; at += LANES) store(grad_seen + row * WIDTH + at, load(grad + at));
        });
    });
    const Floats scale = query_scale();
    Journeys(*team, offsets, sizes[1]).each(*team, [&](Attention& attention, long start, long length, long head) {
        const long place = head * HEAD;
        const bf16* q = qkv + start * 3 * WIDTH + place;
        bf16* of_q = grad_qkv + start * 3 * WIDTH + place;
        const float* turn_here = turn + start * HEAD;
        const auto take = [&](long r, const float* found) {
            for (long d = 0; d < HEAD; d += LANES)
                store(of_q + r * 3 * WIDTH + d,
                      _mm512_mul_ps(turned_back(load(found + d), turn_here + r * HEAD + d), scale));
        };
        attention.backward(q, q + WIDTH, q + 2 * WIDTH, 3 * WIDTH, length, seen + start * WIDTH + place,
                           grad_seen + start * WIDTH + place, WIDTH, log_sums + start * HEADS + head, HEADS, take);
        for (long r = 0; r < length; r++)
            for (long d = 0; d < HEAD; d += LANES) {
                bf16* to = of_q + r * 3 * WIDTH + d;
                const long at = r * HEAD + d;
                store(to + WIDTH, turned_back(load(attention.grad_keys + at), turn_here + at));
                store(to + 2 * WIDTH, load(attention.grad_values + at));
            }
    });
    team->each(parts, [&](long part) {
        Backward& mine = scratch.of(part, layer);
        Half& half = mine.half;
        float* const* grads = sums.of(part);
        each_block(rows, part, parts, [&](long row, long count) {
            const long filled = rounded(count, ROWS);
            const bf16* of_qkv = grad_qkv + row * 3 * WIDTH;
            for (long r = 0; r < count; r++) {
                half.moments_of[r] = normalise(x + (row + r) * WIDTH, weights[NORM_ATTEND_SCALE],
                                               weights[NORM_ATTEND_SHIFT], half.normed + r * WIDTH);
                for (long d = 0; d < 3 * WIDTH; d += LANES)
                    add(grads[QKV_BIAS] + d, load(of_qkv + r * 3 * WIDTH + d));
            }
            layer.qkv.add_gradient(mine.left.of(of_qkv, filled, 3 * WIDTH), mine.right.of(half.normed, filled, WIDTH),
                                   filled, grads[QKV_WEIGHT]);
            layer.qkv.backward(of_qkv, filled, mine.grad);
            for (long r = 0; r < count; r++)
                normalise_backward(mine.grad + r * WIDTH, x + (row + r) * WIDTH, half.moments_of[r],
                                   weights[NORM_ATTEND_SCALE], grad_x + (row + r) * WIDTH, grads[NORM_ATTEND_SCALE],
                                   grads[NORM_ATTEND_SHIFT]);
        });
    });
    sums.add_up(*team);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

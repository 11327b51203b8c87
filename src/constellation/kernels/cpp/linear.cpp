// A linear layer by itself: rows are rounded to bfloat16 block by block, within the cache, and no copy of them is kept.
// See kernels/linear.py. Threads share the rows.
#include "linear.h"
#include "team.h"

namespace {

long num_blocks(long rows) { return rounded(rows, BLOCK) / BLOCK; }

// take(row, count) for the blocks of a part.
template <typename Take>
void each_block(long rows, long part, long parts, Take take) {
    const Span blocks(num_blocks(rows), part, parts);
    for (long row = blocks.begin * BLOCK; row < std::min(blocks.end * BLOCK, rows); row += BLOCK)
        take(row, std::min(BLOCK, rows - row));
}

// `count` rows as bfloat16, and zeros up to a multiple of eight.
void round_rows(const float* from, long count, long columns, bf16* to) {
    for (long at = 0; at < count * columns; at += LANES) store(to + at, load(from + at));
    std::memset(to + count * columns, 0, (rounded(count, ROWS) - count) * columns * sizeof(bf16));
}

}  // namespace

// sizes: rows, width of the result. x [rows, WIDTH], weight [out, WIDTH], y [rows, out]; bias [out] may be null.
extern "C" int linear_forward(const Team* team, const int64_t* sizes, const float* x, const float* weight,
                              const float* bias, float* y) try {
    const long rows = sizes[0], out = sizes[1], parts = team->free_parts(num_blocks(rows));
    const Linear layer(weight, bias, WIDTH, out, false);
    team->each(parts, [&](long part) {
        Buffer<bf16> thin(BLOCK * WIDTH);
        Buffer<float> product(BLOCK * out);
        each_block(rows, part, parts, [&](long row, long count) {
            round_rows(x + row * WIDTH, count, WIDTH, thin);
            layer.forward(thin, rounded(count, ROWS), product);
            for (long r = 0; r < count; r++)
                for (long d = 0; d < out; d += LANES) {
                    const Floats shift = bias == nullptr ? all(0.0f) : load(bias + d);
                    store(y + (row + r) * out + d, _mm512_add_ps(load(product + r * out + d), shift));
                }
        });
    });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// grad_x [rows, WIDTH] is written and may be null; grad_weight and grad_bias [out] are added to.
extern "C" int linear_backward(const Team* team, const int64_t* sizes, const float* x, const float* weight,
                               const float* grad, float* grad_x, float* grad_weight, float* grad_bias) try {
    const long rows = sizes[0], out = sizes[1], parts = team->parts(num_blocks(rows));
    const Linear layer(weight, nullptr, WIDTH, out, true);
    Sums sums({grad_weight, grad_bias}, {out * WIDTH, out}, parts);
    team->each(parts, [&](long part) {
        Buffer<bf16> thin(BLOCK * WIDTH), of_y(BLOCK * out);
        Buffer<float> product(BLOCK * WIDTH);
        Pairs left(out), right(WIDTH);
        float* const* grads = sums.of(part);
        each_block(rows, part, parts, [&](long row, long count) {
            const long filled = rounded(count, ROWS);
            round_rows(x + row * WIDTH, count, WIDTH, thin);
            round_rows(grad + row * out, count, out, of_y);
            for (long r = 0; r < count; r++)
                for (long d = 0; d < out; d += LANES) add(grads[1] + d, load(grad + (row + r) * out + d));
            layer.add_gradient(left.of(of_y, filled, out), right.of(thin, filled, WIDTH), filled, grads[0]);
            if (grad_x == nullptr) return;
            layer.backward(of_y, filled, product);
            std::memcpy(grad_x + row * WIDTH, product, count * WIDTH * sizeof(float));
        });
    });
    sums.add_up(*team);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

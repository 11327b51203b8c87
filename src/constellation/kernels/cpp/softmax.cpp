// The logarithm of a sum of exponentials over a vocabulary, with its gradients made while a block of rows is at hand.
// See kernels/cross_entropy.py; here everything but the products' factors and the exponentials is float32.
#include <algorithm>
#include <cmath>

#include "tiles.h"

namespace {

constexpr long PART = 512;            // of the vocabulary at a time
constexpr float NOBODY = -1e30f;      // bias of what fills the vocabulary up: its exponential is 0
constexpr long FEW = 64, MANY = 128;  // rows of a block: many where the vocabulary's gradient leaves the cache
constexpr long LARGE = 1024;          // from this vocabulary on

struct Output {
    long size;  // of the vocabulary, filled up to whole vectors
    Buffer<word> ahead, back;
    Buffer<float> bias;

    Output(const float* embedding, const float* given_bias, long vocabulary)
        : size(rounded(vocabulary, LANES)), ahead(WIDTH / 2 * size), back(size / 2 * WIDTH), bias(size) {
        Buffer<bf16> rows(size * WIDTH);
        for (long at = 0; at < vocabulary * WIDTH; at += LANES) store(rows + at, load(embedding + at));
        pair_columns(rows, WIDTH, size, WIDTH, ahead, size);
        pair_rows(rows, WIDTH, size, WIDTH, back);
        for (long v = 0; v < size; v++)
            bias[v] = v >= vocabulary ? NOBODY : given_bias == nullptr ? 0.0f : given_bias[v];
    }
};

struct Block {
    const Output& output;
    long rows;
    Buffer<float> logits, weighted;
    Buffer<bf16> query, exps, scaled;
    Buffer<word> exp_pairs, scaled_pairs;
    Buffer<float> sums, shifts, shares;

    Block(const Output& given, long num_rows)
        : output(given), rows(num_rows), logits(rows * PART), weighted(rows * WIDTH), query(rows * WIDTH),
          exps(rows * output.size), scaled(rows * WIDTH), exp_pairs(rows / 2 * PART), scaled_pairs(rows / 2 * WIDTH),
          sums(rows), shifts(rows), shares(rows) {}

    void make_logits(long from, long columns, long filled) {
        multiply(reinterpret_cast<const word*>(query.at), WIDTH / 2, 1, output.ahead + from, output.size, filled,
                 columns, WIDTH / 2, logits, PART);
    }

    void find_shifts(long count, long filled) {
        std::fill(shifts.at, shifts + count, NOBODY);
        for (long from = 0; from < output.size; from += PART) {
            const long columns = std::min(PART, output.size - from);
            make_logits(from, columns, filled);
            for (long r = 0; r < count; r++)
                for (long v = 0; v < columns; v += LANES)
                    shifts[r] = std::max(shifts[r], _mm512_reduce_max_ps(_mm512_add_ps(load(logits + r * PART + v),
                                                                                      load(output.bias + from + v))));
        }
    }

    // exp(logit - shift), their sums, and their products with the embeddings.
    void exponentials(long count, long filled) {
        for (long from = 0; from < output.size; from += PART) {
            const long columns = std::min(PART, output.size - from);
            make_logits(from, columns, filled);
            for (long r = 0; r < count; r++) {
                const Floats shift = all(shifts[r]);
                Floats total = _mm512_setzero_ps();
                for (long v = 0; v < columns; v += LANES) {
                    const Floats logit = _mm512_add_ps(load(logits + r * PART + v), load(output.bias + from + v));
                    const Floats e = exponential(_mm512_sub_ps(logit, shift));
                    total = _mm512_add_ps(total, e);
                    store(exps + r * output.size + from + v, e);
                }
                sums[r] = (from == 0 ? 0.0f : sums[r]) + _mm512_reduce_add_ps(total);
            }
            multiply(reinterpret_cast<const word*>(exps + from), output.size / 2, 1, output.back + from / 2 * WIDTH,
                     WIDTH, filled, WIDTH, columns / 2, weighted, WIDTH, from > 0);
        }
    }

    // Adds to `grad` [size, WIDTH] and `grad_bias` [size].
    void add_gradients(long count, long filled, float* grad, float* grad_bias) {
        pair_rows(scaled, WIDTH, filled, WIDTH, scaled_pairs);
        for (long from = 0; from < output.size; from += PART) {
            const long columns = std::min(PART, output.size - from);
            pair_rows(exps + from, output.size, filled, columns, exp_pairs);
            multiply(exp_pairs, 1, columns, scaled_pairs, WIDTH, columns, WIDTH, filled / 2, grad + from * WIDTH,
                     WIDTH, true);
            for (long v = 0; v < columns; v += LANES) {
                Floats total = load(grad_bias + from + v);
                for (long r = 0; r < count; r++)
                    total = _mm512_fmadd_ps(load(exps + r * output.size + from + v), all(shares[r]), total);
                store(grad_bias + from + v, total);
            }
        }
    }
};

bool all_finite(const float* x, long count) {
    for (long r = 0; r < count; r++)
        if (!(x[r] > 1e-30f && x[r] < 1e30f)) return false;
    return true;
}

}  // namespace

// sizes: rows, vocabulary. bias and weight may be null. grad_query [rows, WIDTH] is written; grad_embedding
// [size, WIDTH] and grad_bias [size] are added to, size being the vocabulary filled up to a multiple of 16.
extern "C" int softmax_total(const int64_t* sizes, const float* query, const float* embedding, const float* bias,
                             const float* weight, float* grad_query, float* grad_embedding, float* grad_bias,
                             double* total) try {
    const long rows = sizes[0], vocabulary = sizes[1];
    const Output output(embedding, bias, vocabulary);
    Block block(output, vocabulary < LARGE ? FEW : MANY);
    for (long row = 0; row < rows; row += block.rows) {
        const long count = std::min(block.rows, rows - row), filled = rounded(count, ROWS);
        for (long at = 0; at < count * WIDTH; at += LANES) store(block.query + at, load(query + row * WIDTH + at));
        std::fill(block.shifts.at, block.shifts + count, 0.0f);
        if (count < filled) {
            std::memset(block.exps + count * output.size, 0, (filled - count) * output.size * sizeof(bf16));
            std::memset(block.scaled + count * WIDTH, 0, (filled - count) * WIDTH * sizeof(bf16));
        }
        block.exponentials(count, filled);
        if (!all_finite(block.sums, count)) {  // logits far from 0: the largest is subtracted first
            block.find_shifts(count, filled);
            block.exponentials(count, filled);
        }
        for (long r = 0; r < count; r++) {
            const float asked = weight == nullptr ? 1.0f : weight[row + r];
            *total += static_cast<double>(asked) * (std::log(block.sums[r]) + block.shifts[r]);
            block.shares[r] = asked / block.sums[r];
            const Floats share = all(block.shares[r]);
            for (long d = 0; d < WIDTH; d += LANES) {
                const long at = r * WIDTH + d;
                store(grad_query + row * WIDTH + at, _mm512_mul_ps(load(block.weighted + at), share));
                store(block.scaled + at, _mm512_mul_ps(load(query + row * WIDTH + at), share));
            }
        }
        block.add_gradients(count, filled, grad_embedding, grad_bias);
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

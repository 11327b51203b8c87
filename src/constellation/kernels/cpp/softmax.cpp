// The logarithm of a sum of exponentials over a vocabulary, with its gradients made while a block of rows is at hand.
// See kernels/cross_entropy.py; here everything but the products' factors and the exponentials is float32. Threads
// share the rows, in whole blocks.
#include <cmath>

#include "team.h"

namespace {

constexpr long PART = 512;            // of the vocabulary at a time
constexpr float NOBODY = -1e30f;      // bias of what fills the vocabulary up: its exponential is 0
constexpr long FEW = 64, MANY = 128;  // rows of a block: many where the vocabulary's gradient leaves the cache
constexpr long LARGE = 1024;          // from this vocabulary on
constexpr long LEAST_SLICE = 64;      // vectors of the vocabulary that are worth a thread
constexpr long MOST_BYTES = 1L << 28; // of exponentials and gradients, over all parts

struct Output {
    long size;  // of the vocabulary, filled up to whole vectors
    Buffer<word> ahead, back;
    Buffer<float> bias;

    Output(const Team& team, const float* embedding, const float* given_bias, long vocabulary)
        : size(rounded(vocabulary, LANES)), ahead(WIDTH / 2 * size), back(size / 2 * WIDTH), bias(size) {
        const long vectors = size / LANES, slices = team.parts(vectors / LEAST_SLICE + 1);
        team.each(slices, [&](long slice) {
            const Span here(vectors, slice, slices);
            const long first = here.begin * LANES, count = here.end * LANES - first;
            Buffer<bf16> rows(count * WIDTH);
            for (long at = 0; at < (std::min(vocabulary, first + count) - first) * WIDTH; at += LANES)
                store(rows + at, load(embedding + first * WIDTH + at));
            pair_columns(rows, WIDTH, count, WIDTH, ahead + first, size);
            pair_rows(rows, WIDTH, count, WIDTH, back + first / 2 * WIDTH);
            for (long v = first; v < first + count; v++)
                bias[v] = v >= vocabulary ? NOBODY : given_bias == nullptr ? 0.0f : given_bias[v];
        });
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

// Products that share the mass of one in each row's set.
struct Sets {
    const int64_t *codes, *offsets;
    const float* shares;
    long vocabulary;

    // Takes share * logit of each member off the total, and its gradients off those of query, embeddings and biases;
    // false where a code is not in the vocabulary.
    bool take_off(long row, const float* query, const float* embedding, const float* bias, float* grad_query,
                  float* const* grads, double* total) const {
        for (long m = offsets[row]; m < offsets[row + 1]; m++) {
            if (shares[m] == 0.0f) continue;
            if (static_cast<uint64_t>(codes[m]) >= static_cast<uint64_t>(vocabulary)) return false;
            const float* own = embedding + codes[m] * WIDTH;
            float* grad_own = grads[0] + codes[m] * WIDTH;
            const Floats share = all(shares[m]);
            Floats along = _mm512_setzero_ps();
            for (long d = 0; d < WIDTH; d += LANES) {
                const Floats q = load(query + d), e = load(own + d);
                along = _mm512_fmadd_ps(q, e, along);
                store(grad_query + d, _mm512_fnmadd_ps(share, e, load(grad_query + d)));
                store(grad_own + d, _mm512_fnmadd_ps(share, q, load(grad_own + d)));
            }
            const float logit = _mm512_reduce_add_ps(along) + (bias == nullptr ? 0.0f : bias[codes[m]]);
            *total -= static_cast<double>(shares[m]) * logit;
            grads[1][codes[m]] -= shares[m];
        }
        return true;
    }
};

bool all_finite(const float* x, long count) {
    for (long r = 0; r < count; r++)
        if (!(x[r] > 1e-30f && x[r] < 1e30f)) return false;
    return true;
}

}  // namespace

// sizes: asked rows, vocabulary. places [asked rows]: where the asked rows lie among all; null: they are all. queries
// [rows]: where the query of each row lies, never twice that of an asked one; null: at the row. bias and weight [rows]
// may be null. codes and shares: of the members of each row's set, `offsets` [rows + 1]; their logits times their
// shares are taken off the total; null where there are no sets. Of the asked queries grad_query is written;
// grad_embedding [size, WIDTH] and grad_bias [size] are added to, size being the vocabulary filled up to a multiple of
// 16. 2 where a code is not in the vocabulary.
extern "C" int softmax_total(const Team* team, const int64_t* sizes, const float* query, const float* embedding,
                             const float* bias, const float* weight, const int64_t* places, const int64_t* queries,
                             const int64_t* codes, const int64_t* offsets, const float* shares, float* grad_query,
                             float* grad_embedding, float* grad_bias, double* total) try {
    const long rows = sizes[0], vocabulary = sizes[1];
    const Output output(*team, embedding, bias, vocabulary);
    const long block_rows = vocabulary < LARGE ? FEW : MANY, blocks = (rows + block_rows - 1) / block_rows;
    const long bytes = output.size * (block_rows * sizeof(bf16) + WIDTH * sizeof(float));
    const long parts = team->parts(std::min(blocks, std::max(MOST_BYTES / std::max(bytes, 1L), 1L)));
    Sums sums({grad_embedding, grad_bias}, {output.size * WIDTH, output.size}, parts);
    const Sets sets{codes, offsets, shares, vocabulary};
    std::vector<double> totals(parts);
    std::atomic<bool> all_known{true};
    team->each(parts, [&](long part) {
        Block block(output, block_rows);
        float* const* grads = sums.of(part);
        double total_here = 0;
        const Span here(blocks, part, parts);
        for (long row = here.begin * block.rows; row < std::min(here.end * block.rows, rows); row += block.rows) {
            const long count = std::min(block.rows, rows - row), filled = rounded(count, ROWS);
            const auto place = [&](long r) { return places == nullptr ? row + r : places[row + r]; };
            const auto first = [&](long r) { return (queries == nullptr ? place(r) : queries[place(r)]) * WIDTH; };
            for (long r = 0; r < count; r++)
                for (long d = 0; d < WIDTH; d += LANES)
                    store(block.query + r * WIDTH + d, load(query + first(r) + d));
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
                const float asked = weight == nullptr ? 1.0f : weight[place(r)];
                total_here += static_cast<double>(asked) * (std::log(block.sums[r]) + block.shifts[r]);
                block.shares[r] = asked / block.sums[r];
                const Floats share = all(block.shares[r]);
                const float* from = query + first(r);
                float* to = grad_query + first(r);
                for (long d = 0; d < WIDTH; d += LANES) {
                    store(to + d, _mm512_mul_ps(load(block.weighted + r * WIDTH + d), share));
                    store(block.scaled + r * WIDTH + d, _mm512_mul_ps(load(from + d), share));
                }
                if (codes != nullptr && !sets.take_off(place(r), from, embedding, bias, to, grads, &total_here))
                    all_known = false;
            }
            block.add_gradients(count, filled, grads[0], grads[1]);
        }
        totals[part] = total_here;
    });
    for (const double each : totals) *total += each;
    sums.add_up(*team);
    return all_known ? 0 : 2;
} catch (const std::bad_alloc&) {
    return 1;
}

// Causal softmax attention of one head over one journey. Keys ahead of a block of queries are never looked at, and
// probabilities are made again in the backward pass from the logarithms of their sums.
#pragma once

#include <cmath>

#include "rows.h"

constexpr long QUERIES = 32;  // at a time

struct Attention {
    long longest;
    Buffer<word> keys_by_column, values_by_column, keys_by_row, values_by_row, query_pairs, grad_pairs;
    Buffer<float> scores, of_scores, out, grad_query, grad_keys, grad_values;
    Buffer<bf16> shares, of_shares;
    Buffer<word> share_pairs, of_share_pairs;

    explicit Attention(long longest_journey)
        : longest(rounded(longest_journey, LANES)),
          keys_by_column(HEAD / 2 * longest), values_by_column(HEAD / 2 * longest),
          keys_by_row(longest / 2 * HEAD), values_by_row(longest / 2 * HEAD),
          query_pairs(QUERIES / 2 * HEAD), grad_pairs(QUERIES / 2 * HEAD),
          scores(QUERIES * longest), of_scores(QUERIES * longest), out(QUERIES * HEAD), grad_query(QUERIES * HEAD),
          grad_keys(longest * HEAD), grad_values(longest * HEAD),
          shares(QUERIES * longest), of_shares(QUERIES * longest),
          share_pairs(QUERIES / 2 * longest), of_share_pairs(QUERIES / 2 * longest) {}

    // exp(score - shift) of the first `seen` keys, 0 for the others up to `keys`. Returns their sum.
    static float exponentials(const float* scores, long seen, long keys, float shift, bf16* shares) {
        Floats total = _mm512_setzero_ps();
        for (long k = 0; k < keys; k += LANES) {
            const __mmask16 here = seen - k >= LANES ? 0xFFFF : seen > k ? (1u << (seen - k)) - 1 : 0;
            const Floats e = _mm512_maskz_mov_ps(here, exponential(_mm512_sub_ps(load(scores + k), all(shift))));
            total = _mm512_add_ps(total, e);
            store(shares + k, e);
        }
        return _mm512_reduce_add_ps(total);
    }

    // q, k, v, seen: rows of the journey at their head, `stride` and `seen_stride` apart; queries are scaled.
    void forward(const bf16* q, const bf16* k, const bf16* v, long stride, long length, bf16* seen, long seen_stride,
                 float* log_sums, long sums_stride) {
        pair_columns(k, stride, length, HEAD, keys_by_column, longest);
        pair_rows(v, stride, length, HEAD, values_by_row);
        for (long first = 0; first < length; first += QUERIES) {
            const long count = std::min(QUERIES, length - first), filled = rounded(count, ROWS);
            const long keys = rounded(first + count, LANES);
            multiply(reinterpret_cast<const word*>(q + first * stride), stride / 2, 1, keys_by_column, longest, filled,
                     keys, HEAD / 2, scores, longest);
            float sums[QUERIES];
            for (long r = 0; r < count; r++) {
                const float* row = scores + r * longest;
                const long ahead = first + r + 1;
                float most = row[0];
                Floats best = all(most);
                long key = 0;
                for (; key + LANES <= ahead; key += LANES) best = _mm512_max_ps(best, load(row + key));
                if (key < ahead)
                    best = _mm512_mask_max_ps(best, static_cast<__mmask16>((1u << (ahead - key)) - 1), best,
                                              load(row + key));
                most = _mm512_reduce_max_ps(best);
                sums[r] = exponentials(row, ahead, keys, most, shares + r * longest);
                log_sums[(first + r) * sums_stride] = most + std::log(sums[r]);
            }
            multiply(reinterpret_cast<const word*>(shares.at), longest / 2, 1, values_by_row, HEAD, filled, HEAD,
                     keys / 2, out, HEAD);
            for (long r = 0; r < count; r++) {
                const Floats inverse = all(1.0f / sums[r]);
                for (long d = 0; d < HEAD; d += LANES)
                    store(seen + (first + r) * seen_stride + d, _mm512_mul_ps(load(out + r * HEAD + d), inverse));
            }
        }
    }

    // Leaves the gradients of keys and values in `grad_keys` and `grad_values` and hands those of each query, float32,
    // to `take(place, grad)`.
    template <typename Take>
    void backward(const bf16* q, const bf16* k, const bf16* v, long stride, long length, const bf16* seen,
                  const bf16* grad_seen, long seen_stride, const float* log_sums, long sums_stride, Take take) {
        pair_columns(k, stride, length, HEAD, keys_by_column, longest);
        pair_columns(v, stride, length, HEAD, values_by_column, longest);
        pair_rows(k, stride, length, HEAD, keys_by_row);
        const long places = rounded(length, LANES);
        std::memset(grad_keys.at, 0, places * HEAD * sizeof(float));
        std::memset(grad_values.at, 0, places * HEAD * sizeof(float));
        for (long first = 0; first < length; first += QUERIES) {
            const long count = std::min(QUERIES, length - first), filled = rounded(count, ROWS);
            const long keys = rounded(first + count, LANES);
            const bf16 *query = q + first * stride, *grad = grad_seen + first * seen_stride;
            multiply(reinterpret_cast<const word*>(query), stride / 2, 1, keys_by_column, longest, filled, keys,
                     HEAD / 2, scores, longest);
            multiply(reinterpret_cast<const word*>(grad), seen_stride / 2, 1, values_by_column, longest, filled, keys,
                     HEAD / 2, of_scores, longest);
            for (long r = 0; r < filled; r++) {
                bf16 *share = shares + r * longest, *of_share = of_shares + r * longest;
                if (r >= count) {
                    std::memset(share, 0, keys * sizeof(bf16));
                    std::memset(of_share, 0, keys * sizeof(bf16));
                    continue;
                }
                exponentials(scores + r * longest, first + r + 1, keys, log_sums[(first + r) * sums_stride], share);
                Floats along = _mm512_setzero_ps();
                for (long d = 0; d < HEAD; d += LANES)
                    along = _mm512_fmadd_ps(load(grad + r * seen_stride + d),
                                            load(seen + (first + r) * seen_stride + d), along);
                const Floats mean = all(_mm512_reduce_add_ps(along));
                for (long key = 0; key < keys; key += LANES)
                    store(of_share + key, _mm512_mul_ps(load(share + key),
                                                        _mm512_sub_ps(load(of_scores + r * longest + key), mean)));
            }
            multiply(reinterpret_cast<const word*>(of_shares.at), longest / 2, 1, keys_by_row, HEAD, filled, HEAD,
                     keys / 2, grad_query, HEAD);
            for (long r = 0; r < count; r++) take(first + r, grad_query + r * HEAD);
            pair_rows(shares, longest, filled, keys, share_pairs);
            pair_rows(of_shares, longest, filled, keys, of_share_pairs);
            pair_rows(query, stride, filled, HEAD, query_pairs);
            pair_rows(grad, seen_stride, filled, HEAD, grad_pairs);
            multiply(of_share_pairs, 1, keys, query_pairs, HEAD, keys, HEAD, filled / 2, grad_keys, HEAD, true);
            multiply(share_pairs, 1, keys, grad_pairs, HEAD, keys, HEAD, filled / 2, grad_values, HEAD, true);
        }
    }
};

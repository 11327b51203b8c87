// A linear layer on a block of rows, and the way back.
#pragma once

#include "tiles.h"

constexpr long BLOCK = 64;  // rows between two products

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

struct Pairs {
    Buffer<word> words;
    explicit Pairs(long columns) : words(BLOCK / 2 * columns) {}
    const word* of(const bf16* rows, long num_rows, long columns) {
        pair_rows(rows, columns, num_rows, columns, words);
        return words;
    }
};


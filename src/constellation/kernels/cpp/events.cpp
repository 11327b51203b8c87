// An event's vector is the sum of the embeddings of its codes and of its numbers times a matrix: one pass over the
// events, forward and backward. See kernels/embedding.py. Threads share the events on the way ahead; on the way back
// two of them share the columns, and each adds all events' gradients to its own, in their order.
#include "dropout.h"
#include "team.h"

namespace {

constexpr long VECTORS = WIDTH / LANES;
constexpr long LEAST_ROWS = 128;  // worth a thread

struct Events {
    long fields, lists, numbers;
    const int64_t* codes;                // [rows, fields]
    const int64_t* const* list_codes;    // of each list [members]
    const int64_t* const* list_offsets;  // of each list [rows + 1]
    const float* values;                 // [rows, numbers]

    // Calls `take` with each code of a row.
    template <typename Take>
    void each_code(long row, Take take) const {
        for (long f = 0; f < fields; f++) take(codes[row * fields + f]);
        for (long l = 0; l < lists; l++)
            for (long m = list_offsets[l][row]; m < list_offsets[l][row + 1]; m++) take(list_codes[l][m]);
    }
};

// Adds the gradients of COUNT vectors of columns from `first` on: loops of a known length are twice as fast here.
template <long COUNT>
void add_columns(const Events& events, const Dropout& dropout, long rows, long first, const float* grad,
                 float* grad_table, float* grad_weight, float* grad_bias) {
    const long column = first * LANES;
    for (long row = 0; row < rows; row++) {
        Floats of_sum[COUNT];
        uint64_t mask = dropout.keeps(row, column / 64 * 64);
        for (long v = 0; v < COUNT; v++) {
            const long d = column + v * LANES;
            if (v > 0 && d % 64 == 0) mask = dropout.keeps(row, d);
            const Floats scaled = _mm512_mul_ps(load(grad + row * WIDTH + d), dropout.scale());
            of_sum[v] = _mm512_maskz_mov_ps(part(mask, d), scaled);
            if (grad_bias != nullptr) add(grad_bias + d, of_sum[v]);
        }
        for (long k = 0; k < events.numbers; k++) {
            const Floats value = all(events.values[row * events.numbers + k]);
            for (long v = 0; v < COUNT; v++) {
                float* to = grad_weight + k * WIDTH + column + v * LANES;
                store(to, _mm512_fmadd_ps(value, of_sum[v], load(to)));
            }
        }
        events.each_code(row, [&](int64_t code) {
            for (long v = 0; v < COUNT; v++) add(grad_table + code * WIDTH + column + v * LANES, of_sum[v]);
        });
    }
}

}  // namespace

// sizes: rows, fields, lists, numbers, drop, codes of the table. weight [numbers, WIDTH] and bias may be null where
// there are no numbers. 2 where a code is not in the table.
extern "C" int events_forward(const Team* team, const int64_t* sizes, uint64_t seed, const int64_t* codes,
                              const int64_t* const* list_codes, const int64_t* const* list_offsets,
                              const float* values, const float* table, const float* weight, const float* bias,
                              float* out) try {
    const Events events{sizes[1], sizes[2], sizes[3], codes, list_codes, list_offsets, values};
    const Dropout dropout{seed, static_cast<int>(sizes[4])};
    const long rows = sizes[0], parts = team->free_parts(rows / LEAST_ROWS + 1);
    std::atomic<bool> all_known{true};
    team->each(parts, [&](long part_of_rows) {
        const Span here(rows, part_of_rows, parts);
        for (long row = here.begin; row < here.end; row++) {
            Floats sum[VECTORS];
            for (long v = 0; v < VECTORS; v++) sum[v] = bias == nullptr ? all(0.0f) : load(bias + v * LANES);
            for (long k = 0; k < events.numbers; k++) {
                const Floats value = all(values[row * events.numbers + k]);
                for (long v = 0; v < VECTORS; v++)
                    sum[v] = _mm512_fmadd_ps(value, load(weight + k * WIDTH + v * LANES), sum[v]);
            }
            bool is_known = true;
            events.each_code(row, [&](int64_t code) {
                is_known &= static_cast<uint64_t>(code) < static_cast<uint64_t>(sizes[5]);
                for (long v = 0; is_known && v < VECTORS; v++)
                    sum[v] = _mm512_add_ps(sum[v], load(table + code * WIDTH + v * LANES));
            });
            if (!is_known) {
                all_known = false;
                return;
            }
            uint64_t mask = 0;
            for (long v = 0; v < VECTORS; v++) {
                if (v * LANES % 64 == 0) mask = dropout.keeps(row, v * LANES);
                const Floats kept = _mm512_maskz_mov_ps(part(mask, v * LANES), _mm512_mul_ps(sum[v], dropout.scale()));
                store(out + row * WIDTH + v * LANES, kept);
            }
        }
    });
    return all_known ? 0 : 2;
} catch (const std::bad_alloc&) {
    return 1;
}

// grad_table, grad_weight and grad_bias are added to.
extern "C" int events_backward(const Team* team, const int64_t* sizes, uint64_t seed, const int64_t* codes,
                               const int64_t* const* list_codes, const int64_t* const* list_offsets,
                               const float* values, const float* grad, float* grad_table, float* grad_weight,
                               float* grad_bias) try {
    const Events events{sizes[1], sizes[2], sizes[3], codes, list_codes, list_offsets, values};
    const Dropout dropout{seed, static_cast<int>(sizes[4])};
    const long rows = sizes[0];
    constexpr long half = VECTORS / 2;
    if (team->size == 1 || rows < LEAST_ROWS)
        add_columns<VECTORS>(events, dropout, rows, 0, grad, grad_table, grad_weight, grad_bias);
    else
        team->each(2, [&](long part) {
            add_columns<half>(events, dropout, rows, part * half, grad, grad_table, grad_weight, grad_bias);
        });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

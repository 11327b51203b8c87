// Parts of the work on several threads: those of torch, started by the OpenMP library that torch itself runs on, so
// that there is one pool of them. Which thread does a part is left to chance; what a part does is not, and gradients
// that several parts add up are kept apart and added in the order of the parts: for a given number of threads the
// result is the same bit for bit, and with one thread there is one part, which works as if there were no others.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <vector>

#include "tiles.h"

constexpr long SHARES = 4;             // of a thread, where parts are free: whoever is done takes the next
constexpr long WORTH_A_THREAD = 4096;  // vectors to add: some 5 microseconds, what it costs to start threads

struct Team {
    int64_t size;                                               // threads
    void (*start)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel; not called for one thread

    // Parts whose results are added up: as many as threads, of at most so many pieces of work.
    long parts(long pieces) const { return std::min<long>(size, pieces); }
    // Parts that have nothing in common: more of them, so that no thread waits long for another.
    long free_parts(long pieces) const { return std::min<long>(size == 1 ? 1 : SHARES * size, pieces); }

    // work(part) for each part. Raises std::bad_alloc where one of them did.
    template <typename Work>
    void each(long parts, const Work& work) const {
        if (parts <= 1 || size == 1) {
            for (long part = 0; part < parts; part++) work(part);
            return;
        }
        struct Shared {
            const Work& work;
            long parts;
            std::atomic<long> next{0};
            std::atomic<bool> failed{false};
        } all{work, parts};
        const auto run = [](void* given) {
            Shared& shared = *static_cast<Shared*>(given);
            try {
                for (long part; (part = shared.next.fetch_add(1)) < shared.parts;) shared.work(part);
            } catch (const std::bad_alloc&) {  // must not leave the thread
                shared.failed = true;
            }
        };
        // All threads, even where parts are fewer: for a smaller team GNU's OpenMP ends the threads left over, and the
        // next one has to start them anew (as torch says of its own loops: github.com/pytorch/pytorch/issues/32008).
        start(run, &all, static_cast<unsigned>(size), 0);
        if (all.failed) throw std::bad_alloc();
    }
};

// [begin, end) of a part, of pieces that are alike.
struct Span {
    long begin, end;
    Span(long pieces, long part, long parts) : begin(pieces * part / parts), end(pieces * (part + 1) / parts) {}
};

// One of something for each part, made at its first use by the thread that works on the part.
template <typename T>
class PerPart {
    std::vector<std::unique_ptr<T>> made;

  public:
    explicit PerPart(long parts) : made(parts) {}
    long parts() const { return made.size(); }
    T* find(long part) const { return made[part].get(); }
    template <typename... Given>
    T& of(long part, Given&&... given) {
        if (made[part] == nullptr) made[part] = std::make_unique<T>(std::forward<Given>(given)...);
        return *made[part];
    }
};

// Arrays that parts add to: the first part to the caller's own, each other one to arrays of its own, zeros at first.
class Sums {
    struct Arrays {
        Buffer<float> values;
        std::vector<float*> at;
        explicit Arrays(const std::vector<long>& sizes) : values(std::accumulate(sizes.begin(), sizes.end(), 0L)) {
            float* next = values;
            for (const long size : sizes) {
                at.push_back(next);
                next += size;
            }
        }
    };
    std::vector<float*> to;
    std::vector<long> sizes;  // whole vectors
    PerPart<Arrays> further;

  public:
    Sums(std::vector<float*> given, std::vector<long> given_sizes, long parts)
        : to(std::move(given)), sizes(std::move(given_sizes)), further(parts) {}

    float* const* of(long part) { return part == 0 ? to.data() : further.of(part, sizes).at.data(); }

    // Array by array, each in slices that threads share; parts in their order.
    void add_up(const Team& team) {
        if (further.parts() < 2) return;
        for (size_t each = 0; each < sizes.size(); each++) {
            const long vectors = sizes[each] / LANES, slices = team.parts(vectors / WORTH_A_THREAD + 1);
            team.each(slices, [&](long slice) {
                const Span here(vectors, slice, slices);
                for (long at = here.begin * LANES; at < here.end * LANES; at += LANES)
                    for (long part = 1; part < further.parts(); part++)
                        if (const Arrays* arrays = further.find(part)) add(to[each] + at, load(arrays->at[each] + at));
            });
        }
    }
};

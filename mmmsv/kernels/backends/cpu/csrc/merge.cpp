// Where the two resolutions of MS2D meet, forward and backward. Plain C interface (at the end), called by
// fused.py.
//
//     norm first:  y = LN(full) + bilinear(sum_routes LN(half_route))
//     norm last:   y = LN(full + nearest(half))
//
// Tasks are rows of the map, tokens within them are walked in order, channels lie in the lanes of a register. The mean
// and the deviation of each token are kept for the backward pass.

#include "merge.h"
#include "moments.h"

namespace {

// The two places of a line of `in` that a bilinear interpolation to a line of `out` reads for its place `at`.
template <class Real> struct Between {
    int64_t low, high;
    Real to_low, to_high;

    Between(int64_t at, int64_t out, int64_t in) {
        const Real place = std::max((at + Real(0.5)) * ((Real)in / out) - Real(0.5), Real(0));
        low = std::min<int64_t>(place, in - 1), high = std::min(low + 1, in - 1);
        to_high = place - low, to_low = 1 - to_high;
    }
    // How much of a place of `in` is in it.
    Real of(int64_t place) const { return (place == low ? to_low : 0) + (place == high ? to_high : 0); }
};

// The place of a line of `in` that place `at` of a line of `out` copies, as torch rounds it.
int64_t nearest(int64_t at, int64_t out, int64_t in) {
    return std::min<int64_t>(std::floor(at * ((float)in / out)), in - 1);
}

// The places of a line of `out` whose first source in `in` is `low` or after it; sources rise with the place.
template <class Source> int64_t first_from(int64_t low, int64_t out, const Source& source) {
    int64_t begin = 0, end = out;
    while (begin < end) {
        const int64_t middle = (begin + end) / 2;
        if (source(middle) < low)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

template <class T> class Task {
    using Real = typename T::Real;
    using V = Vec<Real>;

    const Merge& merge;
    const int64_t D, size, half_size;
    Real* const line;  // of scratch, D numbers

public:
    Task(const Merge& merge, Real* scratch)
        : merge(merge), D(merge.channels), size(merge.height * merge.width),
          half_size(merge.half_height * merge.half_width), line(scratch) {}

    // --- forward ---------------------------------------------------------------------------------------------------

    void sum_half_row(int64_t batch, int64_t row) {
        for (int64_t column = 0; column < merge.half_width; ++column) {
            Real* sum = half_sum(batch, row, column);
            for (int64_t route = 0; route < merge.routes; ++route) {
                const auto x = token(half(batch, route, row, column));
                const auto [mean, scale] = measure(x, half_moments(batch, route, row, column));
                for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
                    const V value = normal<full>(x(full, d, lanes), mean, scale, d, lanes);
                    write_real<full>(sum + d, route ? read_real<full>(sum + d, lanes) + value : value, lanes);
                });
            }
        }
    }

    void merge_row(int64_t batch, int64_t row) {
        const Between<Real> rows(row, merge.height, merge.half_height);
        for (int64_t column = 0; column < merge.width; ++column) {
            auto* to = place<T>(merge.y, batch, row, column);
            if (!merge.norm_first) {
                const auto x = both(batch, row, column);
                const auto [mean, scale] = measure(x, moments(batch, row, column));
                for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
                    write<T, full>(to + d, normal<full>(x(full, d, lanes), mean, scale, d, lanes), lanes);
                });
                continue;
            }
            const auto x = token(place<T>(merge.full, batch, row, column));
            const auto [mean, scale] = measure(x, moments(batch, row, column));
            const Between<Real> columns(column, merge.width, merge.half_width);
            const Real *low_low = half_sum(batch, rows.low, columns.low), *high_low = half_sum(batch, rows.high, columns.low),
                       *low_high = half_sum(batch, rows.low, columns.high), *high_high = half_sum(batch, rows.high, columns.high);
            for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
                const V low = rows.to_low * read_real<full>(low_low + d, lanes) + rows.to_high * read_real<full>(high_low + d, lanes);
                const V high = rows.to_low * read_real<full>(low_high + d, lanes) + rows.to_high * read_real<full>(high_high + d, lanes);
                const V value = normal<full>(x(full, d, lanes), mean, scale, d, lanes);
                write<T, full>(to + d, value + columns.to_low * low + columns.to_high * high, lanes);
            });
        }
    }

    // --- backward --------------------------------------------------------------------------------------------------

    void differentiate_row(int64_t batch, int64_t row, Real* sums) {
        for (int64_t column = 0; column < merge.width; ++column) {
            const auto dy = token(place<T>(merge.y, batch, row, column));
            auto* to = place<T>(merge.dfull, batch, row, column);
            const Real* kept = moments(batch, row, column);
            if (merge.norm_first)
                differentiate(token(place<T>(merge.full, batch, row, column)), dy, kept, to, sums);
            else
                differentiate(both(batch, row, column), dy, kept, to, sums);
        }
    }

    // Those of the half map: with norm_first, each place gathers dy from the places that read it; otherwise dfull.
    void gather_half_row(int64_t batch, int64_t row, Real* sums) {
        const auto row_source = [&](int64_t at) { return source(at, merge.height, merge.half_height); };
        const auto column_source = [&](int64_t at) { return source(at, merge.width, merge.half_width); };
        const int64_t back = merge.norm_first ? 1 : 0;
        const int64_t top = first_from(row - back, merge.height, row_source);
        const int64_t bottom = first_from(row + 1, merge.height, row_source);
        for (int64_t column = 0; column < merge.half_width; ++column) {
            const int64_t left = first_from(column - back, merge.width, column_source);
            const int64_t right = first_from(column + 1, merge.width, column_source);
            std::fill_n(line, D, Real(0));
            for (int64_t from_row = top; from_row < bottom; ++from_row)
                for (int64_t from_column = left; from_column < right; ++from_column) {
                    const Map& map = merge.norm_first ? merge.y : merge.dfull;
                    const auto* from = place<T>(map, batch, from_row, from_column);
                    const Real share = merge.norm_first ? Between<Real>(from_row, merge.height, merge.half_height).of(row) *
                                                              Between<Real>(from_column, merge.width, merge.half_width).of(column)
                                                        : 1;
                    for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
                        write_real<full>(line + d, read_real<full>(line + d, lanes) + share * read<T, full>(from + d, lanes), lanes);
                    });
                }
            const auto gathered = [&](auto full, int64_t d, int lanes) { return read_real<full>(line + d, lanes); };
            for (int64_t route = 0; route < merge.routes; ++route) {
                auto* to = place<T>(merge.dhalf, batch, row, column) + route * merge.dhalf_route;
                if (merge.norm_first)
                    differentiate(token(half(batch, route, row, column)), gathered,
                                  half_moments(batch, route, row, column), to, sums);
                else
                    for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
                        write<T, full>(to + d, gathered(full, d, lanes), lanes);
                    });
            }
        }
    }

private:
    int64_t source(int64_t at, int64_t out, int64_t in) const {
        return merge.norm_first ? Between<Real>(at, out, in).low : nearest(at, out, in);
    }

    // Tokens are functions that read a register: of one place of a map, or of the sum of two.
    static auto token(const typename T::Bits* at) {
        return [at](auto full, int64_t d, int lanes) { return read<T, full>(at + d, lanes); };
    }
    auto both(int64_t batch, int64_t row, int64_t column) const {
        const auto* one = place<T>(merge.full, batch, row, column);
        const auto* other = half(batch, 0, nearest(row, merge.height, merge.half_height),
                                 nearest(column, merge.width, merge.half_width));
        return [one, other](auto full, int64_t d, int lanes) {
            return read<T, full>(one + d, lanes) + read<T, full>(other + d, lanes);
        };
    }

    const typename T::Bits* half(int64_t batch, int64_t route, int64_t row, int64_t column) const {
        return place<T>(merge.half, batch, row, column) + route * merge.half_route;
    }
    Real* half_sum(int64_t batch, int64_t row, int64_t column) const {
        return (Real*)merge.half_sum + (batch * half_size + row * merge.half_width + column) * D;
    }
    Real* moments(int64_t batch, int64_t row, int64_t column) const {
        const int64_t normed = size + (merge.norm_first ? merge.routes * half_size : 0);
        return (Real*)merge.moments + 2 * (batch * normed + row * merge.width + column);
    }
    Real* half_moments(int64_t batch, int64_t route, int64_t row, int64_t column) const {
        return moments(batch, 0, 0) + 2 * (size + route * half_size + row * merge.half_width + column);
    }

    // Also keeps them.
    template <class Token> Moments<Real> measure(const Token& x, Real* kept) const {
        const auto moments = ::measure<Real>(x, D, merge.eps);
        kept[0] = moments.mean, kept[1] = moments.scale;
        return moments;
    }

    template <bool full> V normal(V x, Real mean, Real scale, int64_t d, int lanes) const {
        return (x - mean) * scale * read_real<full>((const Real*)merge.weight + d, lanes) +
               read_real<full>((const Real*)merge.bias + d, lanes);
    }

    // Of a token that went through the norm: dx = scale (g - mean(g) - n mean(g n)), g = weight dy, n = (x - mean) scale.
    template <class Token, class Gradient>
    void differentiate(const Token& x, const Gradient& dy, const Real* kept, typename T::Bits* dx, Real* sums) const {
        const Real mean = kept[0], scale = kept[1], *weight = (const Real*)merge.weight;
        V sum{}, product{};
        for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
            const V gradient = dy(full, d, lanes), n = (x(full, d, lanes) - mean) * scale;
            const V g = gradient * read_real<full>(weight + d, lanes);
            sum += g, product += g * n;
            write_real<full>(sums + d, read_real<full>(sums + d, lanes) + gradient * n, lanes);
            write_real<full>(sums + D + d, read_real<full>(sums + D + d, lanes) + gradient, lanes);
        });
        const Real mean_g = lane_sum(sum) / D, mean_product = lane_sum(product) / D;
        for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
            const V n = (x(full, d, lanes) - mean) * scale;
            const V g = dy(full, d, lanes) * read_real<full>(weight + d, lanes);
            write<T, full>(dx + d, scale * (g - mean_g - n * mean_product), lanes);
        });
    }
};

// Call body(task, batch, row, sums) for the rows of all maps of a height, in merge.parts parts.
template <class T, class Body> void for_rows(const Merge& merge, int64_t height, const Body& body) {
    using Real = typename T::Real;
    const int64_t rows = merge.batch * height;
    in_parallel(merge.threads, merge.parts, (Real*)merge.scratch, merge.channels, [&](int64_t part, Real* scratch) {
        Task<T> task(merge, scratch);
        Real* sums = (Real*)merge.weight_parts + part * 2 * merge.channels;
        for (int64_t row = rows * part / merge.parts; row < rows * (part + 1) / merge.parts; ++row)
            body(task, row / height, row % height, sums);
    });
}

template <class T> void run_forward(const Merge& merge) {
    using Real = typename T::Real;
    if (merge.norm_first)
        for_rows<T>(merge, merge.half_height,
                    [](Task<T>& task, int64_t batch, int64_t row, Real*) { task.sum_half_row(batch, row); });
    for_rows<T>(merge, merge.height,
                [](Task<T>& task, int64_t batch, int64_t row, Real*) { task.merge_row(batch, row); });
}

template <class T> void run_backward(const Merge& merge) {
    using Real = typename T::Real;
    for_rows<T>(merge, merge.height, [](Task<T>& task, int64_t batch, int64_t row, Real* sums) {
        task.differentiate_row(batch, row, sums);
    });
    for_rows<T>(merge, merge.half_height, [](Task<T>& task, int64_t batch, int64_t row, Real* sums) {
        task.gather_half_row(batch, row, sums);
    });
}

}  // namespace

extern "C" {

// How many numbers of the dtype of the sums each thread needs as scratch.
EXPORT int64_t mmmsv_merge_scratch(const Merge* merge) { return merge->channels; }

EXPORT void mmmsv_merge_forward(const Merge* merge) {
    with_dtype(merge->dtype, [&](auto T) { run_forward<decltype(T)>(*merge); });
}

EXPORT void mmmsv_merge_backward(const Merge* merge) {
    with_dtype(merge->dtype, [&](auto T) { run_backward<decltype(T)>(*merge); });
}

}  // extern "C"

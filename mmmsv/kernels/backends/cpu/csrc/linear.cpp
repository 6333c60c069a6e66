// Linear layers. Plain C interface (at the end), called by linear.py and block.cpp.

#include "linear.h"

namespace {

constexpr int64_t WIDTH = Simd<float>::width;
constexpr int REGISTERS = 3;  // of a row of a tile
constexpr int64_t COLUMNS = REGISTERS * WIDTH;

// Exchange the numbers of register i whose lanes have the bit `size` with those of register i + size whose lanes have not,
// for each i that has not: a step of the transposition.
template <int size> INLINE void exchange(Floats (&rows)[WIDTH]) {
    for (int i = 0; i < WIDTH; ++i) {
        if (i & size) continue;
        const Floats low = rows[i], high = rows[i + size];
#if defined(__clang__)
        for (int lane = 0; lane < WIDTH; ++lane) {
            rows[i][lane] = lane & size ? high[lane - size] : low[lane];
            rows[i + size][lane] = lane & size ? high[lane] : low[lane + size];
        }
#else
        Ints from_low{}, from_high{};
        for (int lane = 0; lane < WIDTH; ++lane) {
            from_low[lane] = lane & size ? WIDTH + lane - size : lane;
            from_high[lane] = lane & size ? WIDTH + lane : lane + size;
        }
        rows[i] = __builtin_shuffle(low, high, from_low);
        rows[i + size] = __builtin_shuffle(low, high, from_high);
#endif
    }
}

INLINE void transpose(Floats (&rows)[WIDTH]) {
    if constexpr (WIDTH > 8) exchange<WIDTH / 2>(rows);
    if constexpr (WIDTH > 4) exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}

// --- how numbers are multiplied -------------------------------------------------------------------------------------

// A lane of a panel holds what a unit of a row of x is multiplied by.

// A number by a number, in float.
template <class T> struct Single {
    using X = T;
    typedef typename T::Bits Unit;
    static constexpr int64_t inputs = 1;  // of a unit

    static INLINE Floats spread(const Unit* unit) { return splat(read_one<T>(unit)); }
    static INLINE Floats multiply_add(Floats sum, Floats x, Floats weight) { return sum + x * weight; }
    template <class W> static INLINE Floats units(const typename W::Bits* weights) { return read<W, true>(weights, WIDTH); }
    template <class W> static INLINE float unit(const typename W::Bits* weights) { return read_one<W>(weights); }
};

#if REGISTER_BYTES == 64
// Two numbers of bfloat16 by two, both products added in float: an instruction that not all processors with AVX-512 have,
// which is why it is not the compiler that writes it.
struct Pair {
    using X = bf16;
    typedef uint32_t Unit;
    static constexpr int64_t inputs = 2;

    static INLINE Floats spread(const Unit* unit) {
        Unit pair;
        memcpy(&pair, unit, sizeof pair);
        return as_floats(Words{} + pair);
    }
    static INLINE Floats multiply_add(Floats sum, Floats x, Floats weight) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(weight));
        return sum;
    }
    template <class W> static INLINE Floats units(const typename W::Bits* weights) {
        if constexpr (std::is_same_v<W, bf16>) return load((const float*)weights);
        const Floats low = load((const float*)weights), high = load((const float*)weights + WIDTH);
        Floats value;
        asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(value) : "v"(high), "v"(low));
        return value;
    }
    template <class W> static INLINE float unit(const typename W::Bits* weights) {
        typename W::Bits both[2 * WIDTH] = {weights[0], weights[1]};
        return units<W>(both)[0];
    }
};

#endif

bool multiplies_pairs() {
#if REGISTER_BYTES == 64
    static const bool has = __builtin_cpu_supports("avx512bf16");
    return has;
#else
    return false;
#endif
}

// --- panels and tiles -----------------------------------------------------------------------------------------------

// A linear layer. M: how numbers are multiplied; W: of the weights.
template <class M, class W> class Product {
    using T = typename M::X;
    using Unit = typename M::Unit;

    const Linear& linear;
    const int64_t units, tiles, panels;

public:
    explicit Product(const Linear& linear)
        : linear(linear), units(linear.inputs / M::inputs), tiles(ceil_div(linear.rows, ROWS)),
          panels(ceil_div(linear.outputs, COLUMNS)) {}

    // Each thread makes a panel when it comes to it, and computes all rows of it: a panel is made by one thread, or by two.
    void run_few() const {
        const int64_t all = tiles * panels;
        in_parallel(linear.threads, linear.threads, linear.scratch, units * COLUMNS, [&](int64_t part, float* panel) {
            int64_t made = -1;
            for (int64_t at = all * part / linear.threads; at < all * (part + 1) / linear.threads; ++at) {
                const int64_t output = at / tiles * COLUMNS;
                if (output != made) make_panel(made = output, panel);
                compute_rows<ROWS>(at % tiles * ROWS, output, panel);
            }
        });
    }

    // All panels are made first.
    void run_many() const {
        make_panels(linear.scratch);
        const RowBlocks blocks(linear.rows, linear.threads);
        in_parallel(linear.threads, blocks.count, linear.scratch, 0, [&](int64_t block, float*) {
            multiply(blocks.begin(block), blocks.begin(block + 1), linear.scratch);
        });
    }

    int64_t size_of_panels() const { return panels * units * COLUMNS; }

    void make_panels(float* to) const {
        in_parallel(linear.threads, panels, to, 0,
                    [&](int64_t index, float*) { make_panel(index * COLUMNS, to + index * units * COLUMNS); });
    }

    // Compute rows from begin to end.
    void multiply(int64_t begin, int64_t end, const float* made) const {
        for (int64_t index = 0; index < panels; ++index)
            for (int64_t row = begin; row < end; row += ROWS)
                compute_rows<ROWS>(row, index * COLUMNS, made + index * units * COLUMNS);
    }

private:
    // Make the panel, (units, COLUMNS), of the outputs from one on; columns beyond the last one repeat it.
    void make_panel(int64_t output, float* panel) const {
        const int64_t last = linear.outputs - 1;
        const auto row = [&](int64_t unit) { return panel + unit * COLUMNS; };
        for (int64_t column = 0; column < COLUMNS; column += WIDTH) {
            const typename W::Bits* from[WIDTH];
            for (int64_t i = 0; i < WIDTH; ++i)
                from[i] = (const typename W::Bits*)linear.weight + std::min(output + column + i, last) * linear.inputs;
            int64_t unit = 0;
            for (; unit + WIDTH <= units; unit += WIDTH) {
                Floats rows[WIDTH];
                for (int64_t i = 0; i < WIDTH; ++i) rows[i] = units_of(from[i], unit);
                transpose(rows);
                for (int64_t i = 0; i < WIDTH; ++i) store(row(unit + i) + column, rows[i]);
            }
            for (; unit < units; ++unit)
                for (int64_t i = 0; i < WIDTH; ++i) row(unit)[column + i] = unit_of(from[i], unit);
        }
    }

    Floats units_of(const typename W::Bits* weights, int64_t unit) const {
        if (linear.taps <= 1) return M::template units<W>(weights + unit * M::inputs);
        typename W::Bits line[WIDTH * M::inputs];
        take_taps(weights, unit, WIDTH * M::inputs, line);
        return M::template units<W>(line);
    }

    float unit_of(const typename W::Bits* weights, int64_t unit) const {
        if (linear.taps <= 1) return M::template unit<W>(weights + unit * M::inputs);
        typename W::Bits line[M::inputs];
        take_taps(weights, unit, M::inputs, line);
        return M::template unit<W>(line);
    }

    // The weights of some inputs, from those of a unit on, out of (inputs / taps, taps).
    void take_taps(const typename W::Bits* weights, int64_t unit, int64_t count, typename W::Bits* to) const {
        const int64_t channels = linear.inputs / linear.taps;
        int64_t tap = unit * M::inputs / channels, channel = unit * M::inputs % channels;
        for (int64_t i = 0; i < count; ++i) {
            to[i] = weights[channel * linear.taps + tap];
            if (++channel == channels) channel = 0, ++tap;
        }
    }

    template <int rows> void compute_rows(int64_t first, int64_t output, const float* panel) const {
        if constexpr (rows > 1)
            if (linear.rows - first < rows) return compute_rows<rows - 1>(first, output, panel);
        const int64_t columns = std::min(linear.outputs - output, COLUMNS), registers = ceil_div(columns, WIDTH);
        const int lanes = columns - (registers - 1) * WIDTH;
        if (registers == 3) return compute_tile<rows, 3>(first, output, panel, lanes);
        if (registers == 2) return compute_tile<rows, 2>(first, output, panel, lanes);
        compute_tile<rows, 1>(first, output, panel, lanes);
    }

    // Compute `rows` x `registers` of y; of the last register, `lanes` lanes.
    template <int rows, int registers>
    void compute_tile(int64_t first, int64_t output, const float* panel, int lanes) const {
        Floats sum[rows][registers] = {};
        const Unit* from[rows];
        for (int i = 0; i < rows; ++i) from[i] = (const Unit*)linear.x + (first + i) * units;
        for (int64_t unit = 0; unit < units; ++unit, panel += COLUMNS) {
            Floats weight[registers];
            for (int j = 0; j < registers; ++j) weight[j] = load(panel + j * WIDTH);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) {
                const Floats value = M::spread(from[i] + unit);
#pragma GCC unroll 4
                for (int j = 0; j < registers; ++j) sum[i][j] = M::multiply_add(sum[i][j], value, weight[j]);
            }
        }
        for (int j = 0; j < registers; ++j) {
            const auto finish = [&](auto full) {
                const int64_t column = output + j * WIDTH;
                const auto* biases = (const typename W::Bits*)linear.bias;
                const Floats bias = biases ? read<W, full>(biases + column, lanes) : Floats{};
                for (int i = 0; i < rows; ++i) {
                    const int64_t at = (first + i) * linear.outputs + column;
                    Floats value = activate(linear.activation, sum[i][j] + bias);
                    if (linear.residual) value += read<T, full>((const typename T::Bits*)linear.residual + at, lanes);
                    write<T, full>((typename T::Bits*)linear.y + at, value, lanes);
                }
            };
            j + 1 < registers || lanes == WIDTH ? finish(std::true_type{}) : finish(std::false_type{});
        }
    }
};

constexpr int64_t FEW_TILES = 32;

bool has_few_rows(const Linear& linear) { return linear.rows <= FEW_TILES * ROWS; }

// Call body(Product) of bfloat16 maps.
template <class W, class Body> auto with_bf16(const Linear& linear, const Body& body) {
#if REGISTER_BYTES == 64
    if (linear.inputs % 2 == 0 && multiplies_pairs()) return body(Product<Pair, W>(linear));
#endif
    return body(Product<Single<bf16>, W>(linear));
}

template <class Body> auto with_product(const Linear& linear, const Body& body) {
    if (linear.dtype == 0) return body(Product<Single<f32>, f32>(linear));
    return linear.weight_dtype == 0 ? with_bf16<f32>(linear, body) : with_bf16<bf16>(linear, body);
}

}  // namespace

extern "C" {

// How many numbers each thread needs as scratch.
EXPORT int64_t mmmsv_linear_scratch(const Linear* linear) {
    const int64_t panels = has_few_rows(*linear) ? 1 : ceil_div(ceil_div(linear->outputs, COLUMNS), linear->threads);
    return panels * linear->inputs * COLUMNS;
}

EXPORT void mmmsv_linear_forward(const Linear* linear) {
    with_product(*linear, [&](auto product) { has_few_rows(*linear) ? product.run_few() : product.run_many(); });
}

int64_t mmmsv_linear_panels(const Linear* linear) {
    return with_product(*linear, [](auto product) { return product.size_of_panels(); });
}

void mmmsv_linear_make_panels(const Linear* linear, float* panels) {
    with_product(*linear, [&](auto product) { product.make_panels(panels); });
}

void mmmsv_linear_multiply(const Linear* linear, const float* panels) {
    with_product(*linear, [&](auto product) { product.multiply(0, linear->rows, panels); });
}

// Whether products in bfloat16 are made of pairs.
EXPORT int64_t mmmsv_linear_multiplies_pairs(void) { return multiplies_pairs(); }

// How many rows x may have for this to be faster than oneDNN: none without AVX-512, as measured.
EXPORT int64_t mmmsv_linear_most_rows(void) { return REGISTER_BYTES == 64 ? FEW_TILES * ROWS : 0; }

}  // extern "C"

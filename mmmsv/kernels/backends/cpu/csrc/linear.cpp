// Linear layers. Plain C interface (at the end), called by linear.py and block.cpp.

#include "linear.h"

namespace {

constexpr int64_t WIDTH = Simd<float>::width;
// Of a tile: of the 32 registers of AVX-512, 27 hold sums and 3 a piece of the panel; of 16, 12 and 3.
constexpr int ROWS = REGISTER_BYTES == 64 ? 9 : 4, REGISTERS = 3;
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

// Make the panel, (inputs, COLUMNS), of the outputs from one on; columns beyond the last one repeat it.
void make_panel(const Linear& linear, int64_t output, float* panel) {
    const int64_t inputs = linear.inputs, last = linear.outputs - 1;
    for (int64_t column = 0; column < COLUMNS; column += WIDTH) {
        const float* from[WIDTH];
        for (int64_t i = 0; i < WIDTH; ++i)
            from[i] = linear.weight + std::min(output + column + i, last) * inputs;
        int64_t k = 0;
        for (; k + WIDTH <= inputs; k += WIDTH) {
            Floats rows[WIDTH];
            for (int64_t i = 0; i < WIDTH; ++i) rows[i] = load(from[i] + k);
            transpose(rows);
            for (int64_t i = 0; i < WIDTH; ++i) store(panel + (k + i) * COLUMNS + column, rows[i]);
        }
        for (; k < inputs; ++k)
            for (int64_t i = 0; i < WIDTH; ++i) panel[k * COLUMNS + column + i] = from[i][k];
    }
}

// Compute `rows` x `registers` of y; of the last register, `lanes` lanes.
template <int rows, int registers>
void compute_tile(const Linear& linear, int64_t row, int64_t output, const float* panel, int lanes) {
    const float* x = linear.x + row * linear.inputs;
    Floats sum[rows][registers] = {};
    for (int64_t k = 0; k < linear.inputs; ++k) {
        Floats weight[registers];
        for (int j = 0; j < registers; ++j) weight[j] = load(panel + k * COLUMNS + j * WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            const Floats value = splat(x[i * linear.inputs + k]);
#pragma GCC unroll 4
            for (int j = 0; j < registers; ++j) sum[i][j] += value * weight[j];
        }
    }
    for (int j = 0; j < registers; ++j) {
        const auto finish = [&](auto full) {
            const int64_t column = output + j * WIDTH;
            const Floats bias = linear.bias ? read_real<full>(linear.bias + column, lanes) : Floats{};
            for (int i = 0; i < rows; ++i) {
                const int64_t at = (row + i) * linear.outputs + column;
                Floats value = activate(linear.activation, sum[i][j] + bias);
                if (linear.residual) value += read_real<full>(linear.residual + at, lanes);
                write_real<full>(linear.y + at, value, lanes);
            }
        };
        j + 1 < registers || lanes == WIDTH ? finish(std::true_type{}) : finish(std::false_type{});
    }
}

template <int rows> void compute_rows(const Linear& linear, int64_t row, int64_t output, const float* panel) {
    if constexpr (rows > 1)
        if (linear.rows - row < rows) return compute_rows<rows - 1>(linear, row, output, panel);
    const int64_t columns = std::min(linear.outputs - output, COLUMNS), registers = ceil_div(columns, WIDTH);
    const auto tile = registers == 3   ? compute_tile<rows, 3>
                      : registers == 2 ? compute_tile<rows, 2>
                                       : compute_tile<rows, 1>;
    tile(linear, row, output, panel, columns - (registers - 1) * WIDTH);
}

// With few rows each thread makes a panel when it comes to it, and computes all rows of it: a panel is made by one thread,
// or by two. With more, all panels are made first, and a block of rows stays in the cache while they pass.
constexpr int64_t FEW_TILES = 32, TILES_OF_BLOCK = 8;

bool has_few_rows(const Linear& linear) { return linear.rows <= FEW_TILES * ROWS; }

void run_few(const Linear& linear) {
    const int64_t tiles = ceil_div(linear.rows, ROWS), all = tiles * ceil_div(linear.outputs, COLUMNS);
    in_parallel(linear.threads, linear.threads, linear.scratch, linear.inputs * COLUMNS, [&](int64_t part, float* panel) {
        int64_t made = -1;
        for (int64_t at = all * part / linear.threads; at < all * (part + 1) / linear.threads; ++at) {
            const int64_t output = at / tiles * COLUMNS;
            if (output != made) make_panel(linear, made = output, panel);
            compute_rows<ROWS>(linear, at % tiles * ROWS, output, panel);
        }
    });
}

void run_many(const Linear& linear) {
    const int64_t tiles = ceil_div(linear.rows, ROWS), panels = ceil_div(linear.outputs, COLUMNS);
    const auto panel_of = [&](int64_t index) { return linear.scratch + index * linear.inputs * COLUMNS; };
    in_parallel(linear.threads, panels, linear.scratch, 0, [&](int64_t index, float*) {
        make_panel(linear, index * COLUMNS, panel_of(index));
    });
    const int64_t blocks = std::max(ceil_div(tiles, TILES_OF_BLOCK), std::min(tiles, 4 * linear.threads));
    in_parallel(linear.threads, blocks, linear.scratch, 0, [&](int64_t block, float*) {
        for (int64_t index = 0; index < panels; ++index)
            for (int64_t tile = tiles * block / blocks; tile < tiles * (block + 1) / blocks; ++tile)
                compute_rows<ROWS>(linear, tile * ROWS, index * COLUMNS, panel_of(index));
    });
}

}  // namespace

extern "C" {

// How many numbers each thread needs as scratch.
EXPORT int64_t mmmsv_linear_scratch(const Linear* linear) {
    const int64_t panels = has_few_rows(*linear) ? 1 : ceil_div(ceil_div(linear->outputs, COLUMNS), linear->threads);
    return panels * linear->inputs * COLUMNS;
}

EXPORT void mmmsv_linear_forward(const Linear* linear) { has_few_rows(*linear) ? run_few(*linear) : run_many(*linear); }

// How many rows x may have for this to be faster than oneDNN: none without AVX-512, as measured.
EXPORT int64_t mmmsv_linear_most_rows(void) { return REGISTER_BYTES == 64 ? FEW_TILES * ROWS : 0; }

}  // extern "C"

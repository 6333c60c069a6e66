// How work is cut into tasks: blocks of channels, and threads that share the tasks out.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

#ifdef _OPENMP
extern "C" int omp_get_thread_num(void);  // instead of omp.h, which not every compiler brings along
#endif

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// A channels-last map; strides in elements. The channels are contiguous.
struct Map {
    void* data;
    int64_t batch, row, column;
};

}  // extern "C"

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block of channels: whole registers, but for the last one.
template <class Real> struct Block {
    static constexpr int width = Simd<Real>::width;
    int64_t index, begin, end;

    Block(int64_t all_channels, int64_t blocks, int64_t index) : index(index) {
        const int64_t registers = ceil_div(all_channels, width);
        begin = registers * index / blocks * width;
        end = std::min(registers * (index + 1) / blocks * width, all_channels);
    }
    int64_t channels() const { return end - begin; }
    int64_t padded() const { return ceil_div(channels(), width) * width; }
    int lanes(int64_t channel) const { return std::min<int64_t>(width, end - channel); }

    // Of the largest of `blocks` blocks.
    static int64_t most_padded(int64_t all_channels, int64_t blocks) {
        const int64_t registers = ceil_div(all_channels, width);
        return ceil_div(registers, blocks) * width;
    }
};

// Where the numbers of a channels-last map lie; nowhere where there is no such map.
template <class T> INLINE typename T::Bits* place(const Map& map, int64_t batch, int64_t row, int64_t column) {
    if (!map.data) return nullptr;
    return (typename T::Bits*)map.data + batch * map.batch + row * map.row + column * map.column;
}

// Call body(full, channel, lanes) for each register of channels; full is a constant, and false for a last register
// that is not whole.
template <class Real, class Body> INLINE void for_registers(int64_t channels, const Body& body) {
    constexpr int width = Simd<Real>::width;
    int64_t channel = 0;
    for (; channel + width <= channels; channel += width) body(std::true_type{}, channel, width);
    if (channel < channels) body(std::false_type{}, channel, (int)(channels - channel));
}

// Take some numbers of scratch.
template <class Real> INLINE Real* take(Real*& scratch, int64_t count) { return (scratch += count) - count; }

// Call task(index, scratch) for each index, over threads; `size` numbers of scratch for each thread lie one after the
// other. Each task must write what no other does: then the schedule changes nothing in the results. One thread is the
// caller. Each thread has tasks in a row, and the same ones in the next op over the same rows, so that it reads what it
// has written itself: two cores may be slow at reading each other's caches.
template <class Real, class Task>
void in_parallel(int64_t threads, int64_t tasks, Real* scratch, int64_t size, const Task& task) {
    if (threads == 1) {
        [[maybe_unused]] const FlushDenormals flush;
        for (int64_t index = 0; index < tasks; ++index) task(index, scratch);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const FlushDenormals flush;
#ifdef _OPENMP
        Real* own = scratch + omp_get_thread_num() * size;
#else
        Real* own = scratch;
#endif
#pragma omp for schedule(static)
        for (int64_t index = 0; index < tasks; ++index) task(index, own);
    }
}

// Call body(T) for the dtype of that place in DTYPES of library.py.
template <class Body> auto with_dtype(int64_t dtype, const Body& body) {
    switch (dtype) {
        case 0: return body(f32{});
        case 1: return body(f64{});
        case 2: return body(bf16{});
        default: return body(f16{});
    }
}

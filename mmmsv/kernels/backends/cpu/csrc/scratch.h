// The scratch of several steps in a row.
#pragma once

#include "tasks.h"

// Memory that is taken and given back in order. Without any it only finds out how much is needed.
class Scratch {
    uintptr_t memory;
    int64_t used = 0, most = 0;

public:
    explicit Scratch(float* memory) : memory((uintptr_t)memory) {}

    template <class Bits> Bits* take(int64_t count) {
        const int64_t at = used;
        used += ceil_div(count * sizeof(Bits), 64) * 64;  // so that a line of the cache has numbers of one array alone
        most = std::max(most, used);
        return (Bits*)(memory + at);
    }
    bool only_measures() const { return !memory; }
    int64_t floats() const { return most / sizeof(float); }

    // Gives back, at its end, what was taken in its life.
    class Scope {
        Scratch& scratch;
        const int64_t before;

    public:
        explicit Scope(Scratch& scratch) : scratch(scratch), before(scratch.used) {}
        ~Scope() { scratch.used = before; }
    };
};

#include "tasks.h"

// Lets library.py detect a library that was built from other sources (setup.py).
extern "C" EXPORT int64_t mmmsv_sources(void) { return MMMSV_SOURCES; }

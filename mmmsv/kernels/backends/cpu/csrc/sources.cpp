#include "tasks.h"

// By which native_library.py knows a library that was built from other sources (setup.py).
extern "C" EXPORT int64_t mmmsv_sources(void) { return MMMSV_SOURCES; }

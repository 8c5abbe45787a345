// Lines for people, on stderr: "ringreduce[rank]: message".
#pragma once

#include <string>

namespace ringreduce {

enum LogLevel { kError = 0, kWarning = 1, kInfo = 2, kDebug = 3 };

// Prints where settings().log_level (RINGREDUCE_LOG) is `level` or more. One write for each
// call, so that the lines of different ranks do not mix.
void log(int level, const std::string& message);

// The rank that log() names; before the first call it names none.
void set_log_rank(int rank);

}  // namespace ringreduce

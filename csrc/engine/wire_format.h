// What must be equal on all ranks for them to understand each other: compared by init() before
// anything is shared.
#pragma once

#include <string>

namespace ringreduce {

// Raised with every change of what ranks write for each other: tables and counters in shared
// memory, messages between hosts, signatures.
constexpr int kWireFormat = 6;

// The number, and what a compiler or a platform could make different under the same number.
std::string wire_format();

}  // namespace ringreduce

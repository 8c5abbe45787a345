// What there is to know of a collective: a row of collectives/kinds.cc. From it are made the checks of what a
// caller asks for, what must agree between ranks and how that is told, and the way to the result on CPU and GPU.
#pragma once

#include <cstdint>
#include <memory>

namespace ringreduce {

class Machine;
struct Channel;
struct Output;
struct Submission;

struct Kind {
  enum class Root : uint8_t { kNone, kFrom, kTo };  // what one rank is to the others
  enum class Counts : uint8_t {  // bytes by rank, which sum to the input
    kNone,
    kAgreed,  // the same on all ranks: of the part that each of them gets
    kOwn,     // what this rank sends to each
  };
  enum class Small : uint8_t {  // what little data does (ops/small.h)
    kAsLarge,
    kNothing,   // there is none: to have agreed is all
    kReduced,   // is reduced where the ranks agree
    kGathered,  // lies where the ranks agree, for those to read whom it is for
  };

  uint8_t number;
  const char* name;
  Root root;
  bool reduces;      // by an operation with factors, which must agree
  bool rows;         // `shape` is that of a row; their number may differ by rank
  bool alike;        // the result is as large as the input, in Submission::pieces; else it is an Output
  bool fuses;        // with neighbours
  Counts counts;
  Small small;
  // Executes it on CPU memory. Null where nothing is left to do.
  std::unique_ptr<Machine> (*machine)(Channel* channel, const Submission& submission, Output* output);
};

}  // namespace ringreduce

// Where the ranks of a communicator of the NCCL double meet: a file in /dev/shm, mapped by every
// process that has a rank, with a seat for each rank and a pipe from each rank to each.
//
//   seats 0..n-1 | pipes 0→0, 0→1, ... n-1→n-1        (untouched pages cost nothing)
//
// The file loses its name when the last rank has sat down, or when one gives up.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "shm/bell.h"

namespace ringreduce::doubles {

// A stream of bytes from one rank to another. One writer, one reader.
struct Pipe {
  static constexpr size_t kBytes = 32 << 10;
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
  alignas(64) char data[kBytes];

  size_t write(const char* from, size_t bytes);  // how many of them fitted
  size_t take(char* to, size_t bytes);           // how many of them there were
};

struct Seat {
  enum Presence : int { kAway, kHere, kDestroyed, kAborted };
  std::atomic<int> presence;
  std::atomic<int> connecting;  // at its first collective
  int pid;
  char pci[32];
  Bell bell;                    // rung when something changes for this rank
};

class Meeting {
 public:
  // Threads of one process that open the same name get the same object. Null: impossible.
  static std::shared_ptr<Meeting> open(const std::string& name, int size);
  ~Meeting();

  int size() const { return size_; }
  Seat& seat(int rank) { return reinterpret_cast<Seat*>(data_)[rank]; }
  Pipe& pipe(int from, int to) { return reinterpret_cast<Pipe*>(data_ + pipes_at())[from * size_ + to]; }
  void ring_all();
  void unlink();

 private:
  Meeting() = default;
  size_t pipes_at() const { return (size_ * sizeof(Seat) + 63) / 64 * 64; }
  size_t bytes() const { return pipes_at() + sizeof(Pipe) * size_ * size_; }

  std::string path_;
  int size_ = 0;
  char* data_ = nullptr;
};

}  // namespace ringreduce::doubles

// Ends the process if something takes too long that nothing else can interrupt: MPI_Init and its
// like hold the interpreter's lock while they wait for ranks that may never come.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace ringreduce {

class Deadline {
 public:
  // A program that is run after so many seconds, to say what this process cannot.
  struct Question {
    double after_s = 0;
    std::vector<std::string> command;
  };
  // A thread of its own keeps the time from here on, until cancel().
  Deadline(double seconds, std::string message, std::vector<Question> questions = {});
  ~Deadline() { cancel(); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  // What is said at the end: it changes with what is being waited for.
  void say(std::string message);
  void cancel();

 private:
  void keep_time(double seconds, std::vector<Question> questions);
  bool cancelled_before(double seconds);

  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::condition_variable cancelled_;
  bool is_cancelled_ = false;
  std::string message_;
  std::thread thread_;
};

}  // namespace ringreduce

#include "common/deadline.h"

#include <csignal>
#include <utility>

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

namespace ringreduce {

namespace {

// Not for ever: it reads of other processes, and that may block.
void run_to_end(const std::vector<std::string>& command) {
  constexpr int kTries = 500;  // of 10 ms
  std::vector<char*> arguments;
  for (const std::string& one : command) arguments.push_back(const_cast<char*>(one.c_str()));
  arguments.push_back(nullptr);
  char* const no_environment[] = {nullptr};  // it is of our MPI's rank, and the program must not be taken for that
  pid_t child = -1;
  if (command.empty() || posix_spawn(&child, arguments[0], nullptr, nullptr, arguments.data(), no_environment) != 0) return;
  for (int i = 0; i < kTries; ++i) {
    if (waitpid(child, nullptr, WNOHANG) != 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGKILL);
  for (int i = 0; i < 10 && waitpid(child, nullptr, WNOHANG) == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace

// `questions` in the order of their times.
Deadline::Deadline(double seconds, std::string message, std::vector<Question> questions)
    : message_(std::move(message)),
      thread_([this, seconds, questions = std::move(questions)]() mutable { keep_time(seconds, std::move(questions)); }) {}

void Deadline::say(std::string message) {
  std::lock_guard<std::mutex> lock(mutex_);
  message_ = std::move(message);
}

void Deadline::cancel() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_cancelled_ = true;
  }
  cancelled_.notify_one();
  if (thread_.joinable()) thread_.join();
}

bool Deadline::cancelled_before(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return cancelled_.wait_until(lock, begin_ + std::chrono::duration<double>(seconds), [this] { return is_cancelled_; });
}

void Deadline::keep_time(double seconds, std::vector<Question> questions) {
  for (const Question& question : questions) {
    if (cancelled_before(question.after_s)) return;
    run_to_end(question.command);
  }
  if (cancelled_before(seconds)) return;
  std::lock_guard<std::mutex> lock(mutex_);
  message_ += '\n';
  for (size_t at = 0; at < message_.size();) {
    const ssize_t written = write(STDERR_FILENO, message_.data() + at, message_.size() - at);
    if (written <= 0) break;
    at += static_cast<size_t>(written);
  }
  // Not exit(): its handlers would wait for the thread that is stuck, and MPI_Finalize for ranks that are not there.
  _exit(1);
}

}  // namespace ringreduce

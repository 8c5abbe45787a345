// Settings, faults, counts, the trace and misuse: control.h says what they are.
#include "control.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace {

const std::map<std::string, long> kDefaults = {
    {"devices", 8},
    {"first_device", 0},
    {"same_pci", 0},
    {"driver_version", 13000},
    {"delay_us", 0},
    {"seed", 1},
    {"nccl_version", 22703},
    {"nccl_comm_blocking", 1},
    {"nccl_connect_us", 2000},
    {"nccl_remote_errors", 0},
    {"nccl_multi_rank_gpu", 0},
};

struct Fault {
  std::string function;
  int error;
  long skip;
  int device;
};

struct Control {
  std::mutex mutex;
  std::map<std::string, long> settings, counts;
  std::vector<Fault> faults;
  bool tracing = false;
  std::string trace, misuse;
  long misuses = 0;

  Control() { reset(); }
  void reset() {
    settings = kDefaults;
    const char* shared = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    settings["nccl_multi_rank_gpu"] = shared && std::string(shared) == "1";
    for (auto& [name, value] : settings) {
      std::string variable = "RR_DOUBLE_";
      for (char c : name) variable += static_cast<char>(std::toupper(c));
      if (const char* text = std::getenv(variable.c_str())) value = std::atol(text);
    }
    counts.clear();
    faults.clear();
    read_faults();
    tracing = false;
    trace.clear();
    misuse.clear();
    misuses = 0;
  }
  void read_faults() {
    const char* text = std::getenv("RR_DOUBLE_FAIL");
    std::istringstream all(text ? text : "");
    for (std::string one; std::getline(all, one, ',');) {
      char function[64] = {};
      Fault fault{"", 0, 0, -1};
      std::sscanf(one.c_str(), "%63[^:]:%d:%ld", function, &fault.error, &fault.skip);
      fault.function = function;
      faults.push_back(fault);
    }
  }
};

Control& control() {
  static Control& control = *new Control;  // threads of streams outlive main()
  return control;
}

const char* kept(std::string text) {
  thread_local std::string last;
  last = std::move(text);
  return last.c_str();
}

}  // namespace

// One that is due, else 0.
int rr_double_take_fault(const char* name) {
  const int device = rr_double_current_device();
  Control& c = control();
  std::lock_guard<std::mutex> lock(c.mutex);
  int error = 0;
  for (auto at = c.faults.begin(); at != c.faults.end();) {
    const bool meant = at->function == name && (at->device < 0 || at->device == device);
    if (meant && !error && at->skip == 0) {
      error = at->error ? at->error : -1;
      at = c.faults.erase(at);
      continue;
    }
    if (meant && at->skip > 0) --at->skip;
    ++at;
  }
  return error;
}

void rr_double_set(const char* name, long value) {
  std::lock_guard<std::mutex> lock(control().mutex);
  if (!control().settings.count(name)) {
    std::fprintf(stderr, "rr_double_set: there is no setting %s\n", name);
    std::abort();
  }
  control().settings[name] = value;
}

long rr_double_get(const char* name) {
  std::lock_guard<std::mutex> lock(control().mutex);
  return control().settings.at(name);
}

void rr_double_fail(const char* function, int error, long skip, int device) {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().faults.push_back({function, error, skip, device});
}

void rr_double_reset() {
  rr_double_stall_all(0);
  std::lock_guard<std::mutex> lock(control().mutex);
  control().reset();
}

void rr_double_count_up(const char* name) {
  std::lock_guard<std::mutex> lock(control().mutex);
  ++control().counts[name];
}

long rr_double_count(const char* function) {
  std::lock_guard<std::mutex> lock(control().mutex);
  return control().counts[function];
}

int rr_double_enter(const char* function, void* stream) {
  {
    Control& c = control();
    std::lock_guard<std::mutex> lock(c.mutex);
    ++c.counts[function];
    if (c.tracing) {
      std::ostringstream line;
      line << function << " device " << rr_double_current_device() << " stream " << stream << "\n";
      c.trace += line.str();
    }
  }
  return rr_double_take_fault(function);
}

void rr_double_trace_start() {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().trace.clear();
  control().tracing = true;
}

const char* rr_double_trace_stop() {
  std::lock_guard<std::mutex> lock(control().mutex);
  control().tracing = false;
  return kept(control().trace);
}

void rr_double_misuse(const char* text) {
  std::lock_guard<std::mutex> lock(control().mutex);
  std::fprintf(stderr, "MISUSE (doubles of CUDA and NCCL): %s\n", text);
  control().misuse += std::string(text) + "\n";
  ++control().misuses;
}

long rr_double_misuses() {
  std::lock_guard<std::mutex> lock(control().mutex);
  return control().misuses;
}

const char* rr_double_misuse_text() {
  std::lock_guard<std::mutex> lock(control().mutex);
  return kept(control().misuse);
}

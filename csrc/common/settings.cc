#include "common/settings.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <variant>

#include "common/slices.h"

namespace ringreduce {

namespace {

std::string brief(double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g", number);
  return text;
}

// What a setting can be: where it goes, and what is allowed. `read` says whether the text is.
struct Text {
  std::string Settings::*member;
  std::string means;

  bool read(const char* text, Settings* s) const { return s->*member = text, true; }
  std::string show(const Settings& s) const { return s.*member; }
  std::string allowed() const { return means; }
};

struct Choice {
  std::string Settings::*member;
  std::vector<std::string> choices;

  bool read(const char* text, Settings* s) const {
    for (const std::string& one : choices)
      if (one == text) return s->*member = one, true;
    return false;
  }
  std::string show(const Settings& s) const { return s.*member; }
  std::string allowed() const {
    std::string list;
    for (const std::string& one : choices) list += (list.empty() ? "one of " : ", ") + one;
    return list;
  }
};

struct Number {
  double Settings::*member;
  double least, most;
  std::string unit;

  bool read(const char* text, Settings* s) const {
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most)) return false;
    return s->*member = value, true;
  }
  std::string show(const Settings& s) const { return brief(s.*member); }
  std::string allowed() const { return "a number of " + unit + " from " + brief(least) + " to " + brief(most); }
};

struct Whole {
  int Settings::*member;
  int least, most;

  bool read(const char* text, Settings* s) const {
    char* end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end || errno || value < least || value > most) return false;
    return s->*member = static_cast<int>(value), true;
  }
  std::string show(const Settings& s) const { return std::to_string(s.*member); }
  std::string allowed() const { return "a whole number from " + std::to_string(least) + " to " + std::to_string(most); }
};

// With an optional suffix K, M or G (powers of 1024).
struct Bytes {
  size_t Settings::*member;
  size_t least, most, multiple = 1;

  bool read(const char* text, Settings* s) const {
    char* end = nullptr;
    errno = 0;
    const unsigned long long value = std::strtoull(text, &end, 10);
    const bool is_number = text[0] >= '0' && text[0] <= '9' && !errno;
    const char* suffixes = "KkMmGg";
    const char* suffix = *end ? std::strchr(suffixes, *end) : nullptr;
    const int shift = suffix ? static_cast<int>(10 * ((suffix - suffixes) / 2 + 1)) : 0;
    const bool ends = !*(suffix ? end + 1 : end);
    if (!is_number || !ends || value > most >> shift || value << shift < least || (value << shift) % multiple) return false;
    return s->*member = value << shift, true;
  }
  std::string show(const Settings& s) const { return std::to_string(s.*member); }
  std::string allowed() const {
    return "a number of bytes from " + std::to_string(least) + " to " + std::to_string(most) +
           ", with an optional suffix K, M or G" + (multiple > 1 ? ", and a multiple of " + std::to_string(multiple) : "");
  }
};

struct Row {
  const char* name;
  std::variant<Text, Choice, Number, Whole, Bytes> value;
  bool agrees = false;  // must be the same on all ranks
};

constexpr double kYear = 365 * 24 * 3600;
constexpr size_t kGiB = size_t{1} << 30;

// A new setting is a row here, a member of Settings and a line of docs/tuning.md.
const std::vector<Row>& rows() {
  static const std::vector<Row> all = {
      {"RINGREDUCE_KERNELS", Choice{&Settings::kernels, {"scalar", "avx2", "avx512"}}},
      {"RINGREDUCE_CHUNK_BYTES", Bytes{&Settings::chunk_bytes, 4096, kGiB, kLine}, true},
      {"RINGREDUCE_FUSION_BYTES", Bytes{&Settings::fusion_bytes, 0, 1024 * kGiB}, true},
      {"RINGREDUCE_RESULT_BYTES", Bytes{&Settings::result_bytes, 0, 1024 * kGiB}},
      {"RINGREDUCE_TIMEOUT", Number{&Settings::timeout_s, 0.1, kYear, "seconds"}},
      {"RINGREDUCE_HOST_TIMEOUT", Number{&Settings::host_timeout_s, 1, kYear, "seconds"}},
      {"RINGREDUCE_STALL_WARNING", Number{&Settings::stall_warning_s, 0.1, kYear, "seconds"}},
      {"RINGREDUCE_STACK_SIGNAL", Whole{&Settings::stack_signal, 0, 64}},
      {"RINGREDUCE_SPIN_US", Number{&Settings::spin_us, 0, 1e6, "microseconds"}},
      {"RINGREDUCE_HOST_ID", Text{&Settings::host_id, "any text"}},
      {"RINGREDUCE_CUDA_LIBRARY", Text{&Settings::cuda_library, "a path"}},
      {"RINGREDUCE_NCCL", Text{&Settings::nccl_library, "a path"}},
      {"RINGREDUCE_GPU_PATH", Choice{&Settings::gpu_path, {"nccl", "host"}}},
      {"NCCL_MULTI_RANK_GPU_ENABLE", Text{&Settings::nccl_multi_rank_gpu, "NCCL's own"}},
      {"RINGREDUCE_DRIFT", Choice{&Settings::drift, {"warn", "error", "off"}}, true},
      {"RINGREDUCE_SINGLE_COPY", Choice{&Settings::single_copy, {"auto", "always", "off"}}, true},
      {"RINGREDUCE_TREE_ARITY", Whole{&Settings::tree_arity, 1, 1024}, true},
      {"RINGREDUCE_LOG", Whole{&Settings::log_level, 0, 3}},
  };
  return all;
}

struct Parsed {
  Settings settings;
  std::string error;  // the first one
  std::vector<SettingInfo> infos;
};

// An unset or empty variable leaves the default, as does one that is not allowed.
Parsed parse() {
  Parsed parsed;
  const Settings defaults;
  for (const Row& row : rows()) {
    std::visit([&](const auto& value) {
      const char* text = std::getenv(row.name);
      if (text && *text && !value.read(text, &parsed.settings) && parsed.error.empty())
        parsed.error = std::string(row.name) + " is '" + text + "'; allowed: " + value.allowed();
      parsed.infos.push_back({row.name, value.show(parsed.settings), value.show(defaults), value.allowed(), row.agrees});
    }, row.value);
  }
  return parsed;
}

// reload_settings() runs while no other thread is in the core.
Parsed& current() {
  static Parsed parsed = parse();
  return parsed;
}

}  // namespace

const Settings& settings() { return current().settings; }
const std::string& settings_error() { return current().error; }
const std::vector<SettingInfo>& setting_infos() { return current().infos; }
void reload_settings() { current() = parse(); }

}  // namespace ringreduce

#include "common/settings.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <utility>

namespace ringreduce {

namespace {

struct Parsed {
  Settings settings;
  std::string error;  // the first one
  SettingTexts texts;
};

// Reads the variables one after the other. An unset or empty variable leaves the default.
class Reader {
 public:
  explicit Reader(Parsed* parsed) : parsed_(parsed) {}

  void choice(const char* name, std::string* value, std::initializer_list<const char*> allowed) {
    parse_choice(name, value, allowed);
    note(name, *value);
  }

  void text(const char* name, std::string* value) {
    if (const char* text = get(name)) *value = text;
    note(name, *value);
  }

  void number(const char* name, double* value, double least, double most, const std::string& unit) {
    parse_number(name, value, least, most, unit);
    note(name, brief(*value));
  }

  void integer(const char* name, int* value, int least, int most) {
    parse_integer(name, value, least, most);
    note(name, std::to_string(*value));
  }

  // Bytes, with an optional suffix K, M or G (powers of 1024).
  void size(const char* name, size_t* value, size_t least, size_t most, size_t multiple = 1) {
    parse_size(name, value, least, most, multiple);
    note(name, std::to_string(*value));
  }

 private:
  void parse_choice(const char* name, std::string* value, std::initializer_list<const char*> allowed) {
    const char* text = get(name);
    if (!text) return;
    std::string list;
    for (const char* one : allowed) {
      if (!std::strcmp(one, text)) return void(*value = text);
      list += (list.empty() ? "" : ", ") + std::string(one);
    }
    reject(name, text, "one of " + list);
  }

  void parse_number(const char* name, double* value, double least, double most, const std::string& unit) {
    const char* text = get(name);
    if (!text) return;
    char* end = nullptr;
    const double read = std::strtod(text, &end);
    if (end != text && !*end && read >= least && read <= most) return void(*value = read);
    reject(name, text, "a number of " + unit + " from " + brief(least) + " to " + brief(most));
  }

  void parse_integer(const char* name, int* value, int least, int most) {
    const char* text = get(name);
    if (!text) return;
    char* end = nullptr;
    errno = 0;
    const long read = std::strtol(text, &end, 10);
    if (end != text && !*end && !errno && read >= least && read <= most) return void(*value = static_cast<int>(read));
    reject(name, text, "a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }

  void parse_size(const char* name, size_t* value, size_t least, size_t most, size_t multiple) {
    const char* text = get(name);
    if (!text) return;
    char* end = nullptr;
    errno = 0;
    const unsigned long long read = std::strtoull(text, &end, 10);
    const bool is_number = text[0] >= '0' && text[0] <= '9' && !errno;
    const char* suffixes = "KkMmGg";
    const char* suffix = *end ? std::strchr(suffixes, *end) : nullptr;
    const int shift = suffix ? static_cast<int>(10 * ((suffix - suffixes) / 2 + 1)) : 0;
    const bool ends = !*(suffix ? end + 1 : end);
    if (is_number && ends && read <= most >> shift && read << shift >= least && (read << shift) % multiple == 0)
      return void(*value = read << shift);
    reject(name, text, "a number of bytes from " + std::to_string(least) + " to " + std::to_string(most) +
                           ", with an optional suffix K, M or G" +
                           (multiple > 1 ? ", and a multiple of " + std::to_string(multiple) : ""));
  }

  void note(const char* name, std::string value) { parsed_->texts.emplace_back(name, std::move(value)); }

  static const char* get(const char* name) {
    const char* text = std::getenv(name);
    return text && *text ? text : nullptr;
  }
  static std::string brief(double number) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.10g", number);
    return text;
  }
  void reject(const char* name, const char* text, const std::string& allowed) {
    if (parsed_->error.empty()) parsed_->error = std::string(name) + " is '" + text + "'; allowed: " + allowed;
  }

  Parsed* parsed_;
};

Parsed parse() {
  constexpr double kYear = 365 * 24 * 3600;
  constexpr size_t kLine = 64;  // slots begin on cache lines, and no element lies in two of them
  Parsed parsed;
  Settings& s = parsed.settings;
  Reader read(&parsed);
  read.choice("RINGREDUCE_KERNELS", &s.kernels, {"scalar", "avx2", "avx512"});
  read.size("RINGREDUCE_CHUNK_BYTES", &s.chunk_bytes, 4096, size_t{1} << 30, kLine);
  read.size("RINGREDUCE_FUSION_BYTES", &s.fusion_bytes, 0, size_t{1} << 40);
  read.size("RINGREDUCE_RESULT_BYTES", &s.result_bytes, 0, size_t{1} << 40);
  read.number("RINGREDUCE_TIMEOUT", &s.timeout_s, 0.1, kYear, "seconds");
  read.number("RINGREDUCE_STALL_WARNING", &s.stall_warning_s, 0.1, kYear, "seconds");
  read.number("RINGREDUCE_SPIN_US", &s.spin_us, 0, 1e6, "microseconds");
  read.text("RINGREDUCE_CUDA_LIBRARY", &s.cuda_library);
  read.text("RINGREDUCE_NCCL", &s.nccl_library);
  read.choice("RINGREDUCE_GPU_PATH", &s.gpu_path, {"nccl", "host"});
  std::string sharing;
  read.text("NCCL_MULTI_RANK_GPU_ENABLE", &sharing);  // NCCL's own
  s.nccl_multi_rank_gpu = sharing == "1";
  read.choice("RINGREDUCE_DRIFT", &s.drift, {"warn", "error", "off"});
  read.integer("RINGREDUCE_TREE_ARITY", &s.tree_arity, 1, 1024);
  read.integer("RINGREDUCE_LOG", &s.log_level, 0, 3);
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
const SettingTexts& setting_texts() { return current().texts; }
void reload_settings() { current() = parse(); }

}  // namespace ringreduce

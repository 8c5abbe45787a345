#include "engine/wire_format.h"

#include "engine/process_set.h"

namespace ringreduce {

std::string wire_format() {
  const uint16_t one = 1;
  const bool little = *reinterpret_cast<const uint8_t*>(&one) == 1;
  return std::to_string(kWireFormat) + (little ? " little-endian " : " big-endian ") + std::to_string(8 * sizeof(void*)) +
         "-bit " + std::to_string(sizeof(SetHeader)) + "/" + std::to_string(sizeof(Entry)) + "/" +
         std::to_string(sizeof(Decision)) + "/" + std::to_string(sizeof(Packet));
}

}  // namespace ringreduce

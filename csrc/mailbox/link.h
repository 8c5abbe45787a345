// The way between this rank and one other: an ordered stream of packets in each direction, and what moves the
// data of large messages. Within a host a ring in shared memory (host_link.h), between hosts a Net (net_link.h).
//
// Of a message its receiver hears by one packet. A small one is in it. A large one is only announced, and comes
// when a receive has been found for it, straight into the receiver's tensor:
//
//   small   kWhole ─────────────────────────────────► its receiver, or a copy until there is one
//   large   kAnnounce ──► (waits for a receive) kAccept ◄── ──► data ──► the receiver's tensor
//                                               kRefuse ◄── of another size or dtype: an error on both sides
//           kWithdraw ──► its sender has given it up, whatever its receiver has answered meanwhile
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"
#include "mailbox/message.h"

namespace ringreduce {

struct Packet {
  enum class Type : uint32_t { kWhole, kAnnounce, kAccept, kRefuse, kWithdraw, kData };
  Type type = Type::kWhole;
  uint32_t payload = 0;  // bytes that follow: of kWhole and kData
  uint64_t number = 0;   // of the message, given by its sender
  uint64_t bytes = 0;    // of the message; kRefuse: of the receiver's tensor
  int32_t tag = 0;
  DType dtype = DType::kUint8;  // as `bytes`

  static constexpr size_t kWholeBytes = 4096;  // a larger message is announced
};
static_assert(sizeof(Packet) == 32, "packets are laid out in memory that ranks share");

class Link {
 public:
  virtual ~Link() = default;

  // *taken is false where there is no room now: again later. What is taken arrives after flush().
  virtual Status put(const Packet& packet, const char* payload, bool* taken) = 0;
  virtual Status flush() = 0;
  // Packets that were taken and have not left yet: somebody must flush() again.
  virtual bool sending() const = 0;

  // The next packet that has arrived; its payload must be taken before the next one is asked for.
  virtual Status next(Packet* packet, bool* there) = 0;
  virtual void take(char* to) = 0;  // null: nobody wants it
  // No more packets are taken for now: tells the other side of the room.
  virtual void settle() = 0;

  // Moves what can be moved of an accepted message, in the order in which they were accepted.
  virtual Status move(Message* message, bool* moved) = 0;
};

}  // namespace ringreduce

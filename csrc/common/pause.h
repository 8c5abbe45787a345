// What a thread says to its core while it spins: that it waits, so that the core saves power and gives its
// other hardware thread the room. Every processor has an instruction of its own for it, or none.
#pragma once

namespace ringreduce {

inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || (defined(__arm__) && __ARM_ARCH >= 7)
  asm volatile("yield" ::: "memory");
#else
  asm volatile("" ::: "memory");  // at least look at memory again
#endif
}

}  // namespace ringreduce

// How tests steer the doubles of CUDA (libcuda_double.so) and NCCL (libnccl_double.so), in C++
// (load.h) and in Python (ctypes; every argument and result is a C long, int, char* or void*).
// All functions are exported by libcuda_double.so and may be called from any thread.
//
// Settings: rr_double_set("name", value). Where none was set, the environment's RR_DOUBLE_NAME
// counts, else the default:
//
//   devices          8       how many GPUs there are
//   first_device     0       physical number of GPU 0: its PCI id is 0000:NN:00.0, NN = 0x10 + number
//   same_pci         0       1: all GPUs have the PCI id of the first
//   driver_version   13000   0: no driver, and no GPU
//   delay_us         0       each piece of work on a stream first waits a random time up to this
//   seed             1       of those random times
//   nccl_version     22703   what ncclGetVersion reports
//   nccl_connect_us  2000    how long a call is "in progress" (init, split, a first operation)
//   nccl_comm_blocking 1     0: all communicators are nonblocking (NCCL_COMM_BLOCKING=0 of NCCL's)
//   nccl_remote_errors 0     1: a peer that died or aborted is ncclRemoteError; else it is a hang
//   nccl_multi_rank_gpu 0    1: two ranks may share a GPU, from version 23000 on (in the environment
//                            also NCCL's own variable, NCCL_MULTI_RANK_GPU_ENABLE=1)
//
// Faults: rr_double_fail("function", error, skip, device) makes a call of that function fail with
// `error`, once, after `skip` calls that do not. A function is one of CudaApi's by its name there
// ("event_record"), or NCCL's ("ncclAllReduce"). `device` is the calling thread's current one
// (-1: any), which tells ranks apart that are threads. In the environment, for a process:
// RR_DOUBLE_FAIL=event_query:700:3,ncclAllReduce:1:0. Three more names:
//
//   nccl_collective  a collective, send or receive is refused with `error`, whatever its kind
//   nccl_async       it is accepted, hangs, and the communicator has the asynchronous error `error`
//   nccl_hang        it is accepted and hangs, until the communicator is aborted (`error` is not used)
//
// Misuse: what real CUDA and NCCL punish with wrong results or hangs. It is written to stderr and
// counted; a test ends by seeing that rr_double_misuses() is 0.
#pragma once

#define RR_DOUBLE_EXPORT __attribute__((visibility("default")))

extern "C" {

RR_DOUBLE_EXPORT void rr_double_set(const char* name, long value);
RR_DOUBLE_EXPORT long rr_double_get(const char* name);
RR_DOUBLE_EXPORT void rr_double_fail(const char* function, int error, long skip, int device);
// Settings and faults as the environment has them; no counts, trace or misuse; nothing stalled.
RR_DOUBLE_EXPORT void rr_double_reset();

// Calls of a function since the reset. Also counted: "host_sync" (calls that make the host wait
// for the GPU: stream_synchronize, host_malloc, host_free), "launch" (kernels and NCCL's launches),
// "nccl_collective" (collectives, sends and receives) and "nccl_in_progress" (calls on nonblocking
// communicators that a thread goes on with).
RR_DOUBLE_EXPORT long rr_double_count(const char* function);
// A line for each call from here on, "FUNCTION device D stream S", in order.
RR_DOUBLE_EXPORT void rr_double_trace_start();
// Ends the trace. The text is valid until this thread asks for another.
RR_DOUBLE_EXPORT const char* rr_double_trace_stop();
RR_DOUBLE_EXPORT long rr_double_misuses();
RR_DOUBLE_EXPORT const char* rr_double_misuse_text();  // all of it; valid as the trace is

// Waits until the stream has done what was enqueued so far; counted nowhere. For torch's CPU
// tensors that stand for GPU tensors: call it where the GPU would order torch's next kernel
// behind the stream. Null is the default stream of the current device.
RR_DOUBLE_EXPORT int rr_double_stream_synchronize(void* stream);
// Nothing that is enqueued runs, until it is called with on = 0. What runs already goes on.
RR_DOUBLE_EXPORT int rr_double_stall(void* stream, int on);
// A stream as torch has them, and its end, after what is enqueued. ringreduce itself destroys none.
RR_DOUBLE_EXPORT void* rr_double_stream_create();
RR_DOUBLE_EXPORT int rr_double_stream_destroy(void* stream);
RR_DOUBLE_EXPORT void rr_double_stall_all(int on);  // the streams there are now

// A graph: what is enqueued on the stream, and on those that wait for its events, is not run but
// recorded. end() says null (and counts a misuse) where such a stream was not joined again.
RR_DOUBLE_EXPORT int rr_double_capture_begin(void* stream);
RR_DOUBLE_EXPORT void* rr_double_capture_end(void* stream);
RR_DOUBLE_EXPORT int rr_double_graph_launch(void* graph, void* stream);

// Blocks of device memory allocated and not yet freed on their stream.
RR_DOUBLE_EXPORT long rr_double_live_blocks();

// --- what the double of NCCL asks of the double of CUDA ------------------------------------------

// Notes a call; an error that rr_double_fail() ordered, or 0.
RR_DOUBLE_EXPORT int rr_double_enter(const char* function, void* stream);
RR_DOUBLE_EXPORT int rr_double_take_fault(const char* name);
RR_DOUBLE_EXPORT void rr_double_count_up(const char* name);
RR_DOUBLE_EXPORT void rr_double_misuse(const char* text);
RR_DOUBLE_EXPORT int rr_double_current_device();
RR_DOUBLE_EXPORT void rr_double_use_device(int device);      // on the calling thread
RR_DOUBLE_EXPORT int rr_double_stream_device(void* stream);  // -1: no stream
RR_DOUBLE_EXPORT int rr_double_is_capturing(void* stream);
// Runs work(state) on the stream's thread in its turn; a captured graph may do so several times.
RR_DOUBLE_EXPORT int rr_double_enqueue(void* stream, void (*work)(void*), void* state);
// A misuse where [memory, memory + bytes) is in a block that was freed, or reaches out of one.
RR_DOUBLE_EXPORT void rr_double_check_memory(const void* memory, unsigned long bytes, const char* what);
}

// Runs a CUDA kernel on the CPU: one operating-system thread, one fiber per CUDA thread, one block after another.
//
//   launch           for every block: fresh shared memory, a fiber per thread, then the scheduler
//   a fiber          runs until it reaches a barrier or returns; then it switches back to the scheduler
//   the scheduler    lets every runnable fiber run, in a chosen order, and opens barriers at which all have arrived
//
// What CUDA leaves undefined is an error here, with the line: threads that wait at different barriers, a barrier that
// cannot open, a shuffle from a lane that takes no part. Memory that nobody wrote holds 0xff bytes, NaN as a float.
// Under AddressSanitizer and ThreadSanitizer the fibers are announced, so that both understand the switching.
// cuda.h, which includes this, gives it the names of CUDA C++.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_start_switch_fiber(void** saved, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* saved, const void** bottom, size_t* size);
extern "C" void __asan_poison_memory_region(void const volatile* address, size_t size);
extern "C" void __asan_unpoison_memory_region(void const volatile* address, size_t size);
#define UNCHECKED __attribute__((noinline, no_sanitize("address")))  // the simulator's own code is not instrumented
#elif defined(__SANITIZE_THREAD__)
#include <sys/mman.h>
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void* __tsan_get_current_fiber();
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#define UNCHECKED __attribute__((noinline, no_sanitize("thread")))
#else
#define UNCHECKED __attribute__((noinline))
#endif

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

namespace simulator {

constexpr unsigned MAX_THREADS = 1024, WARP = 32, MAX_COPIES = 64, MAX_PRODUCTS = 32;
constexpr size_t STACK_BYTES = 1 << 16, ARENA_BYTES = 1 << 19;
constexpr size_t STATIC_SHARED_LIMIT = 48 << 10, DYNAMIC_SHARED_LIMIT = 227 << 10;  // of sm_90
constexpr unsigned ALL_LANES = 0xffffffffu;

enum State : uint8_t { RUNNING, AT_BLOCK_BARRIER, AT_WARP_BARRIER, FINISHED };

struct AsyncCopy { void* to; const void* from; unsigned bytes, valid, group; };  // see async_copy

struct AsyncProduct {                 // see async_product
  void (*multiply)(float* sum, uint64_t a, uint64_t b);
  float* sum;
  uint64_t a, b;           // what it is told of the matrices
  unsigned group;
};

struct Fiber {
  uint3 index;             // threadIdx
  unsigned lane, warp;
  State state;
  int line;                // of the barrier it waits at
  void* stack_pointer;     // while it does not run
  struct Home* home;
  void* asan;
  AsyncCopy copies[MAX_COPIES];
  unsigned copy_count, copy_group;
  bool unfenced;           // copies have landed that only its own eyes, and those of other threads, see
  AsyncProduct products[MAX_PRODUCTS];
  unsigned product_count, product_group;
};

struct Home {              // what a fiber needs of memory; made once, since the thread sanitizer's part is dear
  char* stack;
  void* tsan;
};

struct Warp {
  unsigned waiting = 0, mask = 0, opened = 0;  // lanes at the barrier, lanes it is for, how often it has opened
  uint64_t values[2][WARP] = {};               // what the lanes publish; two sets, so that one barrier is enough
  unsigned published[WARP] = {};               // how often each lane did
  unsigned took_part[2] = {0, 0};              // lanes that arrived at the last two barriers
  void* arguments[WARP] = {};                  // of a collective instruction
  void (*collective)(void**) = nullptr;
};

inline Fiber fibers[MAX_THREADS];
inline Home homes[MAX_THREADS + 1];
inline Warp warps[MAX_THREADS / WARP];
inline Fiber* current = &fibers[0];
inline uint3 block_index;
inline dim3 grid_size, block_size;
inline unsigned alive, waiting;  // threads of the block that have not returned; those at the block's barrier
inline unsigned barriers_opened;
inline unsigned unfenced;        // threads with copies that the tensor cores do not see yet
inline int order;                // 0 forward, 1 reverse, 2 random
inline uint64_t random_state = 1;
inline bool failed;
inline char error[512];
inline char* arena;              // the block's shared memory
inline size_t arena_used, static_used, dynamic_bytes;
inline char* dynamic_shared;
inline uint64_t block_number = 1;
inline void* scheduler_stack_pointer;
inline void* scheduler_tsan;
inline void* scheduler_asan;
inline const void* scheduler_stack;
inline size_t scheduler_stack_size;
struct Body { void (*run)(void*); void* argument; };
inline Body body;                // the kernel with its arguments
inline char block_begin, launch_end;  // addresses that stand for the two; blocks are not ordered among each other

// Keep the first error; the kernel goes on to its end, for a fiber cannot be left in the middle.
template <class... Values>
UNCHECKED inline void fail(const char* format, Values... values) {
  if (failed) return;
  failed = true;
  int length = snprintf(error, sizeof error, format, values...);
  if (length > (int)sizeof error - 64) length = sizeof error - 64;
  snprintf(error + length, 64, " (block %u,%u,%u)", block_index.x, block_index.y, block_index.z);
}

// ---- happens-before: what a thread did before `release` is seen by whoever does `acquire` of the address after it ---

UNCHECKED inline void acquire([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#endif
}

UNCHECKED inline void release([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#endif
}

// ---- switching between fibers: save the registers that a call must keep, exchange the stack pointer -----------------

extern "C" void simulator_switch(void** save_to, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.weak simulator_switch
.type simulator_switch, @function
simulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simulator_switch, .-simulator_switch
)");
constexpr int SAVED_REGISTERS = 6;
#else
#error "the simulator switches stacks with x86-64 instructions (System V): other machines need their own"
#endif

UNCHECKED inline void switch_to_scheduler([[maybe_unused]] bool for_ever = false) {
  Fiber* fiber = current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber->asan, scheduler_stack, scheduler_stack_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(scheduler_tsan, 1);  // 1: switching alone orders nothing, or no race would be seen
#endif
  simulator_switch(&fiber->stack_pointer, scheduler_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber->asan, &scheduler_stack, &scheduler_stack_size);
#endif
}

UNCHECKED inline void switch_to(Fiber& fiber) {
  current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_asan, fiber.home->stack, STACK_BYTES);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.home->tsan, 1);
#endif
  simulator_switch(&scheduler_stack_pointer, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
#endif
}

UNCHECKED inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  acquire(&block_begin);
  body.run(body.argument);
  release(&launch_end);
  current->state = FINISHED;
  switch_to_scheduler(true);
  __builtin_trap();
}

// Lay out a new fiber's stack as if it had been switched away from at the start of fiber_main.
UNCHECKED inline void prepare_stack(Fiber& fiber) {
  void** top = (void**)(((uintptr_t)fiber.home->stack + STACK_BYTES) & ~uintptr_t(15));
  *--top = nullptr;
  *--top = (void*)&fiber_main;
  for (int i = 0; i < SAVED_REGISTERS; i++) *--top = nullptr;
  fiber.stack_pointer = top;
}

// ---- shared memory: one arena per block, filled with 0xff, every array fenced off -----------------------------------

// The address is a multiple of `alignment`, which is what the declaration promises, and not of twice that.
UNCHECKED inline char* take_shared(size_t bytes, size_t alignment) {
  constexpr size_t FENCE = 64;
  size_t begin = (arena_used + 2 * alignment - 1) / (2 * alignment) * (2 * alignment) + alignment;
  size_t end = (begin + bytes + FENCE + 127) / 128 * 128;
  if (end > ARENA_BYTES) fail("no shared memory left for %zu bytes", bytes), begin = alignment, end = arena_used;
  char* memory = arena + begin;
  arena_used = end;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, bytes);
#endif
  for (size_t i = 0; i < bytes; i++) ((volatile char*)memory)[i] = (char)0xff;
  return memory;
}

// The block's array for one `__shared__` declaration; Tag tells the declarations of a kernel apart.
template <class Tag, class T>
UNCHECKED inline T& shared(size_t alignment) {
  static uint64_t taken_for;
  static char* memory;
  if (taken_for != block_number) {
    taken_for = block_number;
    memory = take_shared(sizeof(T), alignment);
    static_used += sizeof(T);
    if (static_used > STATIC_SHARED_LIMIT) fail("%zu bytes of static shared memory, at most 48 KB", static_used);
  }
  return *(T*)memory;
}

// The block's dynamic shared memory, as the first declaration that is come to aligns it.
template <class T>
UNCHECKED inline T* dynamic(size_t alignment) {
  if (!dynamic_shared && dynamic_bytes) dynamic_shared = take_shared(dynamic_bytes, alignment);
  return (T*)dynamic_shared;
}

UNCHECKED inline void begin_block_memory() {
  if (!arena) arena = (char*)aligned_alloc(4096, ARENA_BYTES);
#if defined(__SANITIZE_THREAD__)  // fresh pages, or it would take the block before for another thread that races
  size_t used = (arena_used + 4095) / 4096 * 4096;
  if (used) mmap(arena, used, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  release(&block_begin);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(arena, ARENA_BYTES);
#endif
  unfenced = 0;
  arena_used = 1024;  // the first bytes are never used: their addresses stand for barriers, see below
  static_used = barriers_opened = 0;
  ++block_number;
  dynamic_shared = nullptr;
}

// ---- barriers -------------------------------------------------------------------------------------------------------

UNCHECKED inline void block_barrier(int line) {
  char* barrier = arena + barriers_opened % 2 * 8;
  release(barrier);
  current->state = AT_BLOCK_BARRIER;
  current->line = line;
  ++waiting;
  switch_to_scheduler();
  acquire(barrier);
}

UNCHECKED inline void warp_barrier(unsigned mask, int line) {
  Warp& warp = warps[current->warp];
  if (!(mask >> current->lane & 1)) fail("line %d: lane %u is not in the mask it gives", line, current->lane);
  char* barrier = arena + 64 + current->warp * 16 + warp.opened % 2 * 8;
  release(barrier);
  current->state = AT_WARP_BARRIER;
  current->line = line;
  ++warp.waiting;
  warp.mask = mask;
  switch_to_scheduler();
  acquire(barrier);
}

// Publish a value, wait for the lanes of the mask, and return the values of all lanes.
template <class T>
UNCHECKED inline uint64_t* exchange(unsigned mask, T value, int line) {
  static_assert(sizeof(T) <= 8);
  Warp& warp = warps[current->warp];
  uint64_t* values = warp.values[warp.published[current->lane]++ % 2];
  values[current->lane] = 0;
  memcpy(&values[current->lane], &value, sizeof(T));
  warp_barrier(mask, line);
  return values;
}

// The value of lane `source`, or the lane's own where `source` lies outside its group.
template <class T>
UNCHECKED inline T shuffle(unsigned mask, T value, int source, bool inside, int line) {
  Warp& warp = warps[current->warp];
  unsigned barrier = warp.opened % 2;
  uint64_t* values = exchange(mask, value, line);
  if (!inside) return value;
  if (!((mask & warp.took_part[barrier]) >> (source & 31) & 1))
    fail("line %d: shuffle from lane %d, which takes no part", line, source & 31);
  memcpy(&value, &values[source & 31], sizeof(T));
  return value;
}

UNCHECKED inline unsigned ballot(unsigned mask, bool vote, int line) {
  uint64_t* votes = exchange<uint64_t>(mask, vote, line);
  unsigned result = 0;
  for (unsigned lane = 0; lane < WARP; lane++) result |= unsigned((mask >> lane & 1) && votes[lane]) << lane;
  return result;
}

// An instruction of the whole warp: each lane brings its argument; `execute` sees all 32 once, when all have arrived.
UNCHECKED inline void collective(void* argument, void (*execute)(void**), int line) {
  Warp& warp = warps[current->warp];
  warp.arguments[current->lane] = argument;
  warp.collective = execute;
  warp_barrier(ALL_LANES, line);
}

// ---- what is asynchronous happens when it is waited for and not before; in reverse order of threads at once; in random
// order now so, now so -------------------------------------------------------------------------------------------------

UNCHECKED inline unsigned random_number() {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return random_state >> 33;
}

UNCHECKED inline bool happens_at_once() { return order == 1 || (order == 2 && random_number() % 2); }

// ---- asynchronous copies (cp.async) ---------------------------------------------------------------------------------

__attribute__((noinline)) inline void copy_words(unsigned* to, const unsigned* from, unsigned words, unsigned valid) {
  for (unsigned i = 0; i < words; i++) to[i] = i < valid ? from[i] : 0;  // instrumented: the sanitizers see the access
}

UNCHECKED inline void landed(Fiber& fiber) {
  unfenced += !fiber.unfenced;
  fiber.unfenced = true;
}

// The tensor cores see what has landed of this thread's copies when they read shared memory by themselves.
UNCHECKED inline void fence() {
  unfenced -= current->unfenced;
  current->unfenced = false;
}

// Begin to copy `bytes` (4, 8 or 16) to shared memory; those after the first `valid` become 0.
UNCHECKED inline void async_copy(void* to, const void* from, unsigned bytes, unsigned valid, int line) {
  Fiber& fiber = *current;
  bool aligned = ((uintptr_t)to | (valid ? (uintptr_t)from : 0)) % bytes == 0;
  if (!aligned) fail("line %d: cp.async needs %u-byte alignment", line, bytes);
  if (happens_at_once()) return landed(fiber), copy_words((unsigned*)to, (const unsigned*)from, bytes / 4, valid / 4);
  if (fiber.copy_count == MAX_COPIES) return fail("line %d: %u copies wait; is wait_group missing?", line, MAX_COPIES);
  fiber.copies[fiber.copy_count++] = {to, from, bytes, valid, fiber.copy_group};
}

UNCHECKED inline void async_commit() { current->copy_group++; }

// Finish what waits in all but the last `pending` of the groups that were committed, in order; the rest goes on waiting.
template <class Waiting, class Finish>
UNCHECKED inline void finish_groups(Waiting* waiting, unsigned& count, unsigned committed, unsigned pending, Finish finish) {
  unsigned kept = 0;
  for (unsigned i = 0; i < count; i++) {
    Waiting one = waiting[i];
    if (one.group + pending < committed) finish(one);
    else waiting[kept++] = one;
  }
  count = kept;
}

UNCHECKED inline void async_wait(unsigned pending) {
  Fiber& fiber = *current;
  finish_groups(fiber.copies, fiber.copy_count, fiber.copy_group, pending, [&](const AsyncCopy& copy) UNCHECKED {
    landed(fiber), copy_words((unsigned*)copy.to, (const unsigned*)copy.from, copy.bytes / 4, copy.valid / 4);
  });
}

// ---- asynchronous products (wgmma), which read shared memory --------------------------------------------------------

// Begin multiply(sum, a, b), a thread's part of it: its own sums.
UNCHECKED inline void async_product(AsyncProduct product, int line) {
  Fiber& fiber = *current;
  if (unfenced) fail("line %d: tensor cores read what %u threads have copied without a fence", line, unfenced);
  if (happens_at_once() && !fiber.product_count) return product.multiply(product.sum, product.a, product.b);
  if (fiber.product_count == MAX_PRODUCTS)
    return fail("line %d: %u products wait; is wait_group missing?", line, MAX_PRODUCTS);
  product.group = fiber.product_group;
  fiber.products[fiber.product_count++] = product;
}

UNCHECKED inline void async_product_commit() { current->product_group++; }

UNCHECKED inline void async_product_wait(unsigned pending) {
  Fiber& fiber = *current;
  finish_groups(fiber.products, fiber.product_count, fiber.product_group, pending,
                [](const AsyncProduct& product) UNCHECKED { product.multiply(product.sum, product.a, product.b); });
}

// ---- the scheduler --------------------------------------------------------------------------------------------------

// A warp's barrier opens when every lane of its mask that is still alive has arrived.
UNCHECKED inline void try_warp_barrier(unsigned warp_number, unsigned threads) {
  Warp& warp = warps[warp_number];
  unsigned first = warp_number * WARP, last = first + WARP < threads ? first + WARP : threads, arrived = 0, living = 0;
  int line = -1;
  bool mixed = false;
  for (unsigned i = first; i < last; i++) {
    if (fibers[i].state != FINISHED) living |= 1u << fibers[i].lane;
    if (fibers[i].state != AT_WARP_BARRIER) continue;
    arrived |= 1u << fibers[i].lane;
    mixed |= line >= 0 && fibers[i].line != line;
    line = fibers[i].line;
  }
  if (!warp.waiting || (warp.mask & living & ~arrived)) return;
  if (mixed) fail("lanes of one warp meet at different warp operations, one of them at line %d", line);
  for (unsigned i = first; i < last; i++) {
    if (fibers[i].state != AT_WARP_BARRIER || !(warp.mask >> fibers[i].lane & 1)) continue;
    fibers[i].state = RUNNING;
    --warp.waiting;
  }
  warp.took_part[warp.opened++ % 2] = arrived;
  auto execute = std::exchange(warp.collective, nullptr);
  if (execute && arrived != ALL_LANES) fail("line %d: an instruction of the whole warp, and not all lanes are there", line);
  if (execute && !failed) execute(warp.arguments);
}

// The block's barrier opens when every thread that has not returned waits at it (as on Volta and later).
UNCHECKED inline void try_block_barrier(unsigned threads) {
  if (!alive || waiting != alive) return;
  int line = -1;
  for (unsigned i = 0; i < threads; i++) {
    if (fibers[i].state != AT_BLOCK_BARRIER) continue;
    if (line >= 0 && fibers[i].line != line)
      fail("barrier divergence: threads wait at lines %d and %d", line, fibers[i].line);
    line = fibers[i].line;
    fibers[i].state = RUNNING;
  }
  waiting = 0;
  ++barriers_opened;
}

UNCHECKED inline void begin_fiber(unsigned i) {
  Fiber& fiber = fibers[i];
  fiber.home = &homes[i + block_number % 2];  // so that thread i of the next block is another to the thread sanitizer
  if (!fiber.home->stack) {
    fiber.home->stack = (char*)aligned_alloc(4096, STACK_BYTES);
#if defined(__SANITIZE_THREAD__)
    fiber.home->tsan = __tsan_create_fiber(0);
#endif
  }
  fiber.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
  fiber.lane = i % WARP;
  fiber.warp = i / WARP;
  fiber.state = RUNNING;
  fiber.line = 0;
  fiber.copy_count = fiber.copy_group = fiber.product_count = fiber.product_group = 0;
  fiber.unfenced = false;
  fiber.asan = nullptr;
  prepare_stack(fiber);
}

UNCHECKED inline void shuffle_order(unsigned* turns, unsigned count) {
  for (unsigned i = count - 1; i > 0; i--) std::swap(turns[i], turns[random_number() % (i + 1)]);
}

UNCHECKED inline void run_block() {
  unsigned threads = block_size.x * block_size.y * block_size.z;
  static unsigned turns[MAX_THREADS];
  begin_block_memory();
  alive = threads;
  waiting = 0;
  for (unsigned i = 0; i < (threads + WARP - 1) / WARP; i++) warps[i] = Warp();
  for (unsigned i = 0; i < threads; i++) {
    begin_fiber(i);
    turns[i] = order == 1 ? threads - 1 - i : i;
  }
  while (alive && !failed) {
    bool moved = false;
    if (order == 2) shuffle_order(turns, threads);
    for (unsigned turn = 0; turn < threads && !failed; turn++) {
      Fiber& fiber = fibers[turns[turn]];
      if (fiber.state != RUNNING) continue;
      moved = true;
      switch_to(fiber);
      if (fiber.state == FINISHED) --alive;
      if (fiber.state != AT_BLOCK_BARRIER) try_warp_barrier(fiber.warp, threads);
      try_block_barrier(threads);
    }
    if (moved || !alive) continue;
    int line = 0;
    for (unsigned i = 0; i < threads; i++)
      if (fibers[i].state != FINISHED) line = fibers[i].line;
    fail("deadlock: %u threads are left, one of them waits at line %d", alive, line);
  }
}

// A kernel without barriers needs no fibers: its threads run one after another.
UNCHECKED inline void run_block_without_barriers() {
  unsigned threads = block_size.x * block_size.y * block_size.z;
  for (unsigned turn = 0; turn < threads; turn++) {
    unsigned i = order == 1 ? threads - 1 - turn : turn;
    fibers[0].index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    fibers[0].lane = i % WARP;
    body.run(body.argument);
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

struct Launch { unsigned grid[3], block[3], dynamic_shared, order; };

UNCHECKED inline bool valid(const Launch& launch) {
  const unsigned *grid = launch.grid, *block = launch.block;
  bool empty = !(grid[0] && grid[1] && grid[2] && block[0] && block[1] && block[2]);
  bool large = grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535 || block[2] > 64;
  if (empty || large || (uint64_t)block[0] * block[1] * block[2] > MAX_THREADS) {
    snprintf(error, sizeof error, "invalid launch configuration");
    return false;
  }
  if (launch.dynamic_shared > DYNAMIC_SHARED_LIMIT) {
    snprintf(error, sizeof error, "%u bytes of dynamic shared memory, at most 227 KB", launch.dynamic_shared);
    return false;
  }
  return true;
}

template <class... Parameters, size_t... I>
UNCHECKED inline void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
  kernel(*(std::remove_cv_t<Parameters>*)arguments[I]...);
}

// Run the kernel; return 0, or 1 with a message in `error`.
template <bool has_barriers, class... Parameters>
UNCHECKED int launch(void (*kernel)(Parameters...), const Launch& launch, void** arguments) {
  failed = false;
  error[0] = 0;
  if (!valid(launch)) return 1;
  grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
  block_size = {launch.block[0], launch.block[1], launch.block[2]};
  dynamic_bytes = launch.dynamic_shared;
  order = launch.order;
  struct Call { void (*kernel)(Parameters...); void** arguments; } kernel_call{kernel, arguments};
  body.run = [](void* argument) UNCHECKED {
    auto* one = (Call*)argument;
    call(one->kernel, one->arguments, std::index_sequence_for<Parameters...>{});
  };
  body.argument = &kernel_call;
#if defined(__SANITIZE_THREAD__)
  scheduler_tsan = __tsan_get_current_fiber();
#endif
  release(&block_begin);
  uint64_t blocks = (uint64_t)grid_size.x * grid_size.y * grid_size.z;
  current = &fibers[0];
  for (uint64_t turn = 0; turn < blocks && !failed; turn++) {
    uint64_t i = order == 1 ? blocks - 1 - turn : turn;
    block_index = {unsigned(i % grid_size.x), unsigned(i / grid_size.x % grid_size.y),
                   unsigned(i / ((uint64_t)grid_size.x * grid_size.y))};
    has_barriers ? run_block() : run_block_without_barriers();
  }
  acquire(&launch_end);
  return failed;
}

// One letter for each parameter: P a pointer, V a struct, otherwise NumPy's code of the scalar.
template <class T>
constexpr char type_code() {
  if constexpr (std::is_pointer_v<T>) return 'P';
  else if constexpr (std::is_same_v<T, float>) return 'f';
  else if constexpr (std::is_same_v<T, double>) return 'd';
  else if constexpr (std::is_same_v<T, bool>) return '?';
  else if constexpr (std::is_same_v<T, int>) return 'i';
  else if constexpr (std::is_same_v<T, unsigned>) return 'I';
  else if constexpr (std::is_same_v<T, long long>) return 'q';
  else if constexpr (std::is_class_v<T>) return 'V';
  else static_assert(sizeof(T) == 0, "kernels take pointers, structs, float, double, bool, int, unsigned and long long");
}

template <class... Parameters>
const char* signature(void (*)(Parameters...)) {
  static const char codes[] = {type_code<std::remove_cv_t<Parameters>>()..., 0};
  return codes;
}

template <class... Parameters>
const unsigned* sizes(void (*)(Parameters...)) {
  static const unsigned bytes[] = {sizeof(Parameters)..., 0};
  return bytes;
}

}  // namespace simulator

extern "C" __attribute__((used)) inline const char* simulator_error() { return simulator::error; }
inline auto keep_simulator_error = &simulator_error;  // so that the shared library has it

#define EXPORT_KERNEL(NUMBER, HAS_BARRIERS, ...)                                                       \
  extern "C" int launch_##NUMBER(const simulator::Launch* configuration, void** arguments) {           \
    return simulator::launch<HAS_BARRIERS>(__VA_ARGS__, *configuration, arguments);                    \
  }                                                                                                    \
  extern "C" const char* signature_##NUMBER() { return simulator::signature(__VA_ARGS__); }            \
  extern "C" const unsigned* sizes_##NUMBER() { return simulator::sizes(__VA_ARGS__); }

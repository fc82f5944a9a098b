// Dot products by Hopper's own matrix instructions: reads jobs, runs each, writes what came back.
//
//   nvcc -gencode arch=compute_90a,code=sm_90a -o capture_hopper capture_hopper.cu
//   ./capture_hopper JOBS RESULTS
//
// A job is one tile of 64 x 8 results over `steps` instructions. Its operands come packed: for wgmma
// as images of shared memory, for mma.sync as registers, lane by lane; so do the accumulators. No
// layout is known here: hopper_layout.py packs, and cites the sections of the PTX ISA.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

constexpr int kThreads = 128;       // One warpgroup: four warps of 16 rows each.
constexpr int kWordsOfA = 64 * 8;   // 64 rows of 32 bytes: one step, whatever the format.
constexpr int kWordsOfB = 8 * 8;    // 8 columns of 32 bytes.

// The header of a job, little-endian, as hopper_jobs.py writes it.
struct Header {
  char instruction[48];
  int32_t steps;
  int32_t promote_every;   // Steps from one promotion to the next; 0 for one chain that starts at c.
  int32_t registers;       // Accumulators of one thread, 32 bits each: 4 of float32, 2 of two float16.
  int32_t leading_offset;  // Bytes between core matrices along K (descriptor, wgmma alone).
  int32_t stride_offset;   // Bytes between core matrices along M or N.
};
static_assert(sizeof(Header) == 68, "as hopper_jobs.py packs it");

struct Job {
  Header header;
  const uint32_t *a, *b, *c;
  const float *a_scale, *b_scale;  // (steps / promote_every, threads, 4), where promoted.
  uint32_t *d;
};

// PTX ISA, "Matrix Descriptor Format" of wgmma: start address in bits 13-0, leading dimension byte
// offset in 29-16, stride dimension byte offset in 45-32, each (x & 0x3FFFF) >> 4; base offset 51-49
// and swizzle 63-62 are zero.
__device__ uint64_t field(uint32_t bytes) { return (bytes & 0x3FFFF) >> 4; }

__device__ uint64_t descriptor(const void *shared, const Header &header) {
  const uint32_t start = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return field(start) | field(header.leading_offset) << 16 | field(header.stride_offset) << 32;
}

// An instruction: the type and number of a thread's accumulators, and one step. All of an
// asynchronous step stands in one statement, so that the compiler cannot move registers into it.
#define WGMMA_HEAD                                   \
  "{\n.reg .pred accumulate;\n"                      \
  "wgmma.fence.sync.aligned;\n"
#define WGMMA_TAIL                                   \
  "wgmma.commit_group.sync.aligned;\n"               \
  "wgmma.wait_group.sync.aligned 0;\n}\n"

#define WGMMA_F32(NAME, SHAPE, TYPES, MORE)                                                     \
  struct NAME {                                                                                 \
    using Word = float;                                                                         \
    static constexpr int kRegisters = 4;                                                        \
    static __device__ void step(float (&d)[4], uint64_t a, uint64_t b, int32_t accumulate) {    \
      asm volatile(WGMMA_HEAD                                                                   \
                   "setp.ne.b32 accumulate, %6, 0;\n"                                           \
                   "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES                          \
                   " {%0, %1, %2, %3}, %4, %5, accumulate, 1, 1" MORE ";\n" WGMMA_TAIL          \
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                             \
                   : "l"(a), "l"(b), "r"(accumulate)                                            \
                   : "memory");                                                                 \
    }                                                                                           \
  };

#define WGMMA_F16(NAME, SHAPE, TYPES, MORE)                                                     \
  struct NAME {                                                                                 \
    using Word = uint32_t;                                                                      \
    static constexpr int kRegisters = 2;                                                        \
    static __device__ void step(uint32_t (&d)[2], uint64_t a, uint64_t b, int32_t accumulate) { \
      asm volatile(WGMMA_HEAD                                                                   \
                   "setp.ne.b32 accumulate, %4, 0;\n"                                           \
                   "wgmma.mma_async.sync.aligned." SHAPE ".f16." TYPES                          \
                   " {%0, %1}, %2, %3, accumulate, 1, 1" MORE ";\n" WGMMA_TAIL                  \
                   : "+r"(d[0]), "+r"(d[1])                                                     \
                   : "l"(a), "l"(b), "r"(accumulate)                                            \
                   : "memory");                                                                 \
    }                                                                                           \
  };

#define MMA_F32(NAME, SHAPE, TYPES)                                                             \
  struct NAME {                                                                                 \
    using Word = float;                                                                         \
    static constexpr int kRegisters = 4;                                                        \
    static __device__ void step(float (&d)[4], const uint32_t *a, const uint32_t *b) {          \
      asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPES                              \
                   ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"     \
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));         \
    }                                                                                           \
  };

#define MMA_F16(NAME, SHAPE, TYPES)                                                             \
  struct NAME {                                                                                 \
    using Word = uint32_t;                                                                      \
    static constexpr int kRegisters = 2;                                                        \
    static __device__ void step(uint32_t (&d)[2], const uint32_t *a, const uint32_t *b) {       \
      asm volatile("mma.sync.aligned." SHAPE ".row.col.f16." TYPES                              \
                   ".f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};\n"                     \
                   : "+r"(d[0]), "+r"(d[1])                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));         \
    }                                                                                           \
  };

WGMMA_F32(Wgmma_e4m3_e4m3_f32, "m64n8k32", "e4m3.e4m3", "")
WGMMA_F32(Wgmma_e4m3_e5m2_f32, "m64n8k32", "e4m3.e5m2", "")
WGMMA_F32(Wgmma_e5m2_e4m3_f32, "m64n8k32", "e5m2.e4m3", "")
WGMMA_F32(Wgmma_e5m2_e5m2_f32, "m64n8k32", "e5m2.e5m2", "")
WGMMA_F16(Wgmma_e4m3_e4m3_f16, "m64n8k32", "e4m3.e4m3", "")
WGMMA_F16(Wgmma_e4m3_e5m2_f16, "m64n8k32", "e4m3.e5m2", "")
WGMMA_F16(Wgmma_e5m2_e4m3_f16, "m64n8k32", "e5m2.e4m3", "")
WGMMA_F16(Wgmma_e5m2_e5m2_f16, "m64n8k32", "e5m2.e5m2", "")
// Formats of 16 bits say which operand is transposed: neither.
WGMMA_F32(Wgmma_f16_f16_f32, "m64n8k16", "f16.f16", ", 0, 0")
WGMMA_F16(Wgmma_f16_f16_f16, "m64n8k16", "f16.f16", ", 0, 0")
WGMMA_F32(Wgmma_bf16_bf16_f32, "m64n8k16", "bf16.bf16", ", 0, 0")
WGMMA_F32(Wgmma_tf32_tf32_f32, "m64n8k8", "tf32.tf32", "")
MMA_F32(Mma_e4m3_e4m3_f32, "m16n8k32", "e4m3.e4m3")
MMA_F32(Mma_e4m3_e5m2_f32, "m16n8k32", "e4m3.e5m2")
MMA_F32(Mma_e5m2_e4m3_f32, "m16n8k32", "e5m2.e4m3")
MMA_F32(Mma_e5m2_e5m2_f32, "m16n8k32", "e5m2.e5m2")
MMA_F16(Mma_e4m3_e4m3_f16, "m16n8k32", "e4m3.e4m3")
MMA_F16(Mma_e4m3_e5m2_f16, "m16n8k32", "e4m3.e5m2")
MMA_F16(Mma_e5m2_e4m3_f16, "m16n8k32", "e5m2.e4m3")
MMA_F16(Mma_e5m2_e5m2_f16, "m16n8k32", "e5m2.e5m2")
MMA_F32(Mma_f16_f16_f32, "m16n8k16", "f16.f16")
MMA_F16(Mma_f16_f16_f16, "m16n8k16", "f16.f16")
MMA_F32(Mma_bf16_bf16_f32, "m16n8k16", "bf16.bf16")
MMA_F32(Mma_tf32_tf32_f32, "m16n8k8", "tf32.tf32")

template <class Word>
__device__ void load(Word *registers, const uint32_t *from, int count) {
  for (int i = 0; i < count; ++i) memcpy(&registers[i], from + threadIdx.x * count + i, 4);
}

template <class Word>
__device__ void store(uint32_t *to, const Word *registers, int count) {
  for (int i = 0; i < count; ++i) memcpy(to + threadIdx.x * count + i, &registers[i], 4);
}

// One step's operands into shared memory, ordered before the tensor core's own reads, which go by
// the asynchronous proxy.
__device__ void fill(uint32_t *a, uint32_t *b, const Job &job, int step) {
  for (int i = threadIdx.x; i < kWordsOfA; i += kThreads) a[i] = job.a[step * kWordsOfA + i];
  for (int i = threadIdx.x; i < kWordsOfB; i += kThreads) b[i] = job.b[step * kWordsOfB + i];
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
  __syncthreads();
}

template <class Instruction>
__global__ void __launch_bounds__(kThreads) run_wgmma(Job job) {
  alignas(128) __shared__ uint32_t a[kWordsOfA];
  alignas(128) __shared__ uint32_t b[kWordsOfB];
  typename Instruction::Word sum[Instruction::kRegisters];
  load(sum, job.c, Instruction::kRegisters);
  for (int step = 0; step < job.header.steps; ++step) {
    fill(a, b, job, step);
    Instruction::step(sum, descriptor(a, job.header), descriptor(b, job.header), 1);
    __syncthreads();
  }
  store(job.d, sum, Instruction::kRegisters);
}

// Every `promote_every` steps start from zero, by the instruction's own scale-d; their sum is scaled
// and added to c in float32, correctly rounded, contracted as compilers contract it.
template <class Instruction>
__global__ void __launch_bounds__(kThreads) run_promoted(Job job) {
  alignas(128) __shared__ uint32_t a[kWordsOfA];
  alignas(128) __shared__ uint32_t b[kWordsOfB];
  // NaN, to show that scale-d = 0 ignores what the registers hold.
  float total[4], sum[4] = {NAN, NAN, NAN, NAN};
  load(total, job.c, 4);
  for (int step = 0; step < job.header.steps; ++step) {
    const int place = step % job.header.promote_every, chunk = step / job.header.promote_every;
    fill(a, b, job, step);
    Instruction::step(sum, descriptor(a, job.header), descriptor(b, job.header), place != 0);
    __syncthreads();
    if (place + 1 != job.header.promote_every) continue;
    for (int i = 0; i < 4; ++i) {
      const int at = (chunk * kThreads + threadIdx.x) * 4 + i;
      const float scale = __fmul_rn(job.a_scale[at], job.b_scale[at]);
      total[i] = __fmaf_rn(scale, sum[i], total[i]);
    }
  }
  store(job.d, total, 4);
}

template <class Instruction>
__global__ void __launch_bounds__(kThreads) run_mma(Job job) {
  typename Instruction::Word sum[Instruction::kRegisters];
  load(sum, job.c, Instruction::kRegisters);
  for (int step = 0; step < job.header.steps; ++step) {
    // Every warp has its own rows of A and the same columns of B.
    const uint32_t *a = job.a + step * kWordsOfA + threadIdx.x * 4;
    const uint32_t *b = job.b + step * kWordsOfB + threadIdx.x % 32 * 2;
    Instruction::step(sum, a, b);
  }
  store(job.d, sum, Instruction::kRegisters);
}

using Kernel = void (*)(Job);
struct Entry {
  const char *name;
  int registers;
  Kernel chained, promoted;
};
#define WGMMA_ENTRY(TYPES)                                                                 \
  {"wgmma." #TYPES, Wgmma_##TYPES::kRegisters, run_wgmma<Wgmma_##TYPES>, nullptr}
#define MMA_ENTRY(TYPES) {"mma." #TYPES, Mma_##TYPES::kRegisters, run_mma<Mma_##TYPES>, nullptr}
const Entry kEntries[] = {
    {"wgmma.e4m3_e4m3_f32", 4, run_wgmma<Wgmma_e4m3_e4m3_f32>, run_promoted<Wgmma_e4m3_e4m3_f32>},
    WGMMA_ENTRY(e4m3_e5m2_f32), WGMMA_ENTRY(e5m2_e4m3_f32), WGMMA_ENTRY(e5m2_e5m2_f32),
    WGMMA_ENTRY(e4m3_e4m3_f16), WGMMA_ENTRY(e4m3_e5m2_f16), WGMMA_ENTRY(e5m2_e4m3_f16),
    WGMMA_ENTRY(e5m2_e5m2_f16), WGMMA_ENTRY(f16_f16_f32),   WGMMA_ENTRY(f16_f16_f16),
    WGMMA_ENTRY(bf16_bf16_f32), WGMMA_ENTRY(tf32_tf32_f32), MMA_ENTRY(e4m3_e4m3_f32),
    MMA_ENTRY(e4m3_e5m2_f32),   MMA_ENTRY(e5m2_e4m3_f32),   MMA_ENTRY(e5m2_e5m2_f32),
    MMA_ENTRY(e4m3_e4m3_f16),   MMA_ENTRY(e4m3_e5m2_f16),   MMA_ENTRY(e5m2_e4m3_f16),
    MMA_ENTRY(e5m2_e5m2_f16),   MMA_ENTRY(f16_f16_f32),     MMA_ENTRY(f16_f16_f16),
    MMA_ENTRY(bf16_bf16_f32),   MMA_ENTRY(tf32_tf32_f32),
};

[[noreturn]] void fail(const char *what, const char *which) {
  fprintf(stderr, "capture_hopper: %s: %s\n", what, which);
  exit(1);
}

void check(cudaError_t status, const char *what) {
  if (status != cudaSuccess) fail(what, cudaGetErrorString(status));
}

Kernel kernel_of(const Header &header) {
  for (const Entry &entry : kEntries) {
    if (strcmp(entry.name, header.instruction) != 0) continue;
    if (entry.registers != header.registers) fail("wrong number of registers", entry.name);
    if (header.promote_every == 0) return entry.chained;
    if (entry.promoted == nullptr) fail("not built with promotion", entry.name);
    return entry.promoted;
  }
  fail("no such instruction", header.instruction);
}

// Words of the jobs file, copied to the GPU.
uint32_t *uploaded(FILE *file, size_t words) {
  std::vector<uint32_t> host(words);
  if (fread(host.data(), 4, words, file) != words) fail("jobs file", "ends within a job");
  uint32_t *device = nullptr;
  check(cudaMalloc(&device, words * 4 + 4), "allocation");
  check(cudaMemcpy(device, host.data(), words * 4, cudaMemcpyHostToDevice), "copy to the GPU");
  return device;
}

void run(Header header, FILE *jobs, FILE *results) {
  const Kernel kernel = kernel_of(header);
  const size_t words = static_cast<size_t>(kThreads) * header.registers;
  const size_t scales = header.promote_every == 0 ? 0 : header.steps / header.promote_every * words;
  uint32_t *pointers[5];
  const size_t sizes[5] = {static_cast<size_t>(header.steps) * kWordsOfA,
                           static_cast<size_t>(header.steps) * kWordsOfB, words, scales, scales};
  for (int i = 0; i < 5; ++i) pointers[i] = uploaded(jobs, sizes[i]);
  uint32_t *d = nullptr;
  check(cudaMalloc(&d, words * 4), "allocation");
  const Job job = {header, pointers[0], pointers[1], pointers[2],
                   reinterpret_cast<float *>(pointers[3]), reinterpret_cast<float *>(pointers[4]), d};
  kernel<<<1, kThreads>>>(job);
  check(cudaGetLastError(), header.instruction);
  check(cudaDeviceSynchronize(), header.instruction);
  std::vector<uint32_t> host(words);
  check(cudaMemcpy(host.data(), d, words * 4, cudaMemcpyDeviceToHost), "copy from the GPU");
  if (fwrite(host.data(), 4, words, results) != words) fail("results file", "cannot be written");
  for (uint32_t *pointer : pointers) check(cudaFree(pointer), "freeing");
  check(cudaFree(d), "freeing");
}

// What ran it, as one line of JSON.
void describe() {
  int count = 0, driver = 0, runtime = 0;
  check(cudaGetDeviceCount(&count), "no CUDA device");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "device properties");
  check(cudaDriverGetVersion(&driver), "driver version");
  check(cudaRuntimeGetVersion(&runtime), "runtime version");
  printf("{\"gpu\": \"%s\", \"compute_capability\": \"%d.%d\", \"cuda_driver\": %d, "
         "\"cuda_runtime\": %d}\n",
         properties.name, properties.major, properties.minor, driver, runtime);
  if (properties.major != 9 || properties.minor != 0)
    fail("compute capability 9.0 (H100, H200, GH200) is needed, this is", properties.name);
}

int main(int count, char **arguments) {
  if (count != 3) fail("usage", "capture_hopper JOBS RESULTS");
  FILE *jobs = fopen(arguments[1], "rb"), *results = fopen(arguments[2], "wb");
  if (jobs == nullptr) fail("cannot read", arguments[1]);
  if (results == nullptr) fail("cannot write", arguments[2]);
  describe();
  Header header;
  while (fread(&header, sizeof header, 1, jobs) == 1) {
    header.instruction[sizeof header.instruction - 1] = '\0';
    run(header, jobs, results);
  }
  if (fclose(results) != 0) fail("cannot write", arguments[2]);
  return 0;
}

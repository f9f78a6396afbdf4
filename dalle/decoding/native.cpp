// What a step of the token loop does between its matrix products, for a CPU. `native.py` compiles and calls it, and names
// the plain PyTorch form of each function. Elements are fp32, or bf16 as PyTorch rounds to it; sums are fp32.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(const float* from) { return *from; }

inline float load(const bf16* from) {
    uint32_t bits = uint32_t(from->bits) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline void store(float* to, float x) { *to = x; }

inline void store(bf16* to, float x) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to->bits = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// e^x for x <= 0 to 1e-7, 0 below -87, NaN for NaN: 2^n 2^f with f in [-1/2, 1/2], whose Taylor series is cut after f^6.
// In plain arithmetic, so that compilers make vectors of it.
inline float exp_of_negative(float x) {
    float t = (x < -87.0f ? -87.0f : x) * 1.44269504f;
    float n = std::nearbyint(t);
    float f = (t - n) * 0.693147181f;
    float p = 1 + f * (1 + f * (0.5f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f + f * (1 / 720.0f))))));
    uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return x < -87.0f ? 0.0f : p * scale;
}

// The caches stream from memory in short runs, which a processor does not foresee. An address beyond them does no harm.
template <typename T>
inline void prefetch(const T* from, int64_t width) {
    for (int64_t i = 0; i < width; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

// K is the head width where it is known when compiling, else 0; native.py refuses those above 1024.
template <typename T, int K>
void attend(const T* qkv, int64_t rows, int64_t heads, int64_t width, T* k_cache, T* v_cache, int64_t places, int64_t place,
            const int64_t* visible, const float* bias, int64_t num_visible, T* text, int64_t text_slots, int64_t candidates,
            float* scores, T* out, int64_t threads) {
    const int64_t k_width = K ? K : width;
    const float scale = 1 / std::sqrt(float(k_width));
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            const T* q = qkv + (r * 3 * heads + h) * k_width;
            T* k_at = k_cache + (r * heads + h) * places * k_width;
            T* v_at = v_cache + (r * heads + h) * places * k_width;
            std::memcpy(k_at + place * k_width, q + heads * k_width, k_width * sizeof(T));
            std::memcpy(v_at + place * k_width, q + 2 * heads * k_width, k_width * sizeof(T));

            float query[K ? K : 1024];
#pragma omp simd
            for (int64_t i = 0; i < k_width; i++) query[i] = load(q + i) * scale;

            // of the text [C, H, N, T] the scores are there
            T* text_row = text + (((r / candidates) * heads + h) * candidates + r % candidates) * text_slots;
            float most = -INFINITY;
#pragma omp simd reduction(max : most)
            for (int64_t t = 0; t < text_slots; t++) {
                float score = load(text_row + t) * scale;
                most = score > most ? score : most;
            }
            float* row_scores = scores + (r * heads + h) * num_visible;
            for (int64_t m = 0; m < num_visible; m++) {
                float score = bias[m];
                if (score == 0) {
                    const int64_t at = (visible ? visible[m] : m) * k_width;
                    const T* k = k_at + at;
                    prefetch(v_at + at, k_width);
                    float sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t i = 0; i < k_width; i++) sum += query[i] * load(k + i);
                    score = sum;
                    most = score > most ? score : most;
                }
                row_scores[m] = score;
            }

            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t t = 0; t < text_slots; t++) {
                float weight = exp_of_negative(load(text_row + t) * scale - most);
                total += weight;
                store(text_row + t, weight);
            }
            float sums[K ? K : 1024] = {};
            for (int64_t m = 0; m < num_visible; m++) {
                if (bias[m] != 0) continue;
                float weight = exp_of_negative(row_scores[m] - most);
                total += weight;
                const int64_t at = (visible ? visible[m] : m) * k_width;
                const T* v = v_at + at;
                prefetch(k_at + places * k_width + at, k_width);  // of the next head
#pragma omp simd
                for (int64_t i = 0; i < k_width; i++) sums[i] += weight * load(v + i);
            }
            const float share = 1 / total;
#pragma omp simd
            for (int64_t t = 0; t < text_slots; t++) store(text_row + t, load(text_row + t) * share);
            T* values = out + (r * heads + h) * k_width;
#pragma omp simd
            for (int64_t i = 0; i < k_width; i++) store(values + i, sums[i] * share);
        }
}

template <typename T>
void attend_any(const T* qkv, int64_t rows, int64_t heads, int64_t width, T* k_cache, T* v_cache, int64_t places,
                int64_t place, const int64_t* visible, const float* bias, int64_t num_visible, T* text, int64_t text_slots,
                int64_t candidates, float* scores, T* out, int64_t threads) {
    auto run = width == 64 ? attend<T, 64> : attend<T, 0>;
    run(qkv, rows, heads, width, k_cache, v_cache, places, place, visible, bias, num_visible, text, text_slots, candidates,
        scores, out, threads);
}

template <typename T>
void add_norm(float* x, const T* change, const float* gain, const float* offset, int64_t rows, int64_t width, float epsilon,
              T* out, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        float* row = x + r * width;
        float sum = 0;
        if (change)
#pragma omp simd
            for (int64_t i = 0; i < width; i++) row[i] += load(change + r * width + i);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += row[i];
        const float mean = sum / width;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += (row[i] - mean) * (row[i] - mean);
        const float rate = 1 / std::sqrt(squares / width + epsilon);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) store(out + r * width + i, (row[i] - mean) * rate * gain[i] + offset[i]);
    }
}

}  // namespace

extern "C" {

void attend_bf16(const bf16* qkv, int64_t rows, int64_t heads, int64_t width, bf16* k_cache, bf16* v_cache, int64_t places,
                 int64_t place, const int64_t* visible, const float* bias, int64_t num_visible, bf16* text,
                 int64_t text_slots, int64_t candidates, float* scores, bf16* out, int64_t threads) {
    attend_any(qkv, rows, heads, width, k_cache, v_cache, places, place, visible, bias, num_visible, text, text_slots,
               candidates, scores, out, threads);
}

void attend_fp32(const float* qkv, int64_t rows, int64_t heads, int64_t width, float* k_cache, float* v_cache,
                 int64_t places, int64_t place, const int64_t* visible, const float* bias, int64_t num_visible, float* text,
                 int64_t text_slots, int64_t candidates, float* scores, float* out, int64_t threads) {
    attend_any(qkv, rows, heads, width, k_cache, v_cache, places, place, visible, bias, num_visible, text, text_slots,
               candidates, scores, out, threads);
}

void add_norm_bf16(float* x, const bf16* change, const float* gain, const float* offset, int64_t rows, int64_t width,
                   float epsilon, bf16* out, int64_t threads) {
    add_norm(x, change, gain, offset, rows, width, epsilon, out, threads);
}

void add_norm_fp32(float* x, const float* change, const float* gain, const float* offset, int64_t rows, int64_t width,
                   float epsilon, float* out, int64_t threads) {
    add_norm(x, change, gain, offset, rows, width, epsilon, out, threads);
}
}

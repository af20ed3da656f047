// Energies of mel bands on a CPU in one pass over the waveform, in float32: eight frames stand side by side, so that every step
// of their Fourier transforms is one of vectors, and a frame's spectrum never leaves the cache.

#include <cmath>

#include "native.hpp"

namespace {

constexpr int lanes = 8;
constexpr int64_t few = 64;  // frames below which a second thread costs more than it saves

struct Bands {
  const float* weights;  // (bins, bands)
  int64_t bins, bands;
  std::vector<int64_t> first, end;  // the bins that a band sums

  Bands(const float* weights_, int64_t bins_, int64_t bands_)
      : weights(weights_), bins(bins_), bands(bands_), first(bands_, 0), end(bands_, 0) {
    for (int64_t band = 0; band < bands; ++band) {
      for (int64_t bin = 0; bin < bins; ++bin) {
        if (weights[bin * bands + band] == 0.0f) continue;
        if (end[band] == 0) first[band] = bin;
        end[band] = bin + 1;
      }
    }
  }
};

// A real transform of 2 * half points is a complex one of half as many, of even samples and of odd ones.
struct Transform {
  int64_t half;
  std::vector<int64_t> reversed;    // where a radix-2 transform wants each point
  std::vector<float> cosine, sine;  // of 2 pi k / (2 half)

  explicit Transform(int64_t half_) : half(half_), reversed(half_, 0), cosine(half_), sine(half_) {
    for (int64_t k = 1; k < half; ++k) reversed[k] = reversed[k / 2] / 2 + (k % 2 ? half / 2 : 0);
    for (int64_t k = 0; k < half; ++k) {
      const double angle = 3.14159265358979323846 * double(k) / double(half);
      cosine[k] = float(std::cos(angle));
      sine[k] = float(std::sin(angle));
    }
  }

  // In place, on points in reversed order; a point is a vector of lanes.
  void run(float* real, float* imaginary) const {
    for (int64_t span = 1; span < half; span *= 2) {
      const int64_t stride = half / span;  // e^{-i pi k / span} = table[k * half / span]
      for (int64_t start = 0; start < half; start += 2 * span) {
        for (int64_t k = 0; k < span; ++k) {
          const float c = cosine[k * stride], s = sine[k * stride];
          float* lower_re = real + (start + k) * lanes;
          float* lower_im = imaginary + (start + k) * lanes;
          float* upper_re = lower_re + span * lanes;
          float* upper_im = lower_im + span * lanes;
#pragma omp simd
          for (int l = 0; l < lanes; ++l) {
            const float re = upper_re[l] * c + upper_im[l] * s, im = upper_im[l] * c - upper_re[l] * s;
            upper_re[l] = lower_re[l] - re;
            upper_im[l] = lower_im[l] - im;
            lower_re[l] += re;
            lower_im[l] += im;
          }
        }
      }
    }
  }

  // Squared magnitudes of the real transform's half + 1 bins.
  void powers(const float* real, const float* imaginary, float* power) const {
#pragma omp simd
    for (int l = 0; l < lanes; ++l) {
      const float sum = real[l] + imaginary[l], difference = real[l] - imaginary[l];
      power[l] = sum * sum;
      power[half * lanes + l] = difference * difference;
    }
    for (int64_t k = 1; k < half; ++k) {
      const float *re = real + k * lanes, *im = imaginary + k * lanes;
      const float *mirrored_re = real + (half - k) * lanes, *mirrored_im = imaginary + (half - k) * lanes;
      const float c = cosine[k], s = sine[k];
      float* out = power + k * lanes;
#pragma omp simd
      for (int l = 0; l < lanes; ++l) {
        const float even_re = 0.5f * (re[l] + mirrored_re[l]), even_im = 0.5f * (im[l] - mirrored_im[l]);
        const float odd_re = 0.5f * (im[l] + mirrored_im[l]), odd_im = 0.5f * (mirrored_re[l] - re[l]);
        const float all_re = even_re + odd_re * c + odd_im * s, all_im = even_im + odd_im * c - odd_re * s;
        out[l] = all_re * all_re + all_im * all_im;
      }
    }
  }
};

struct Framing {
  const float *waveform, *window;
  float preemphasis;
  int64_t samples, frames, kernel, stride;  // samples and frames of a row
};

// A frame less its mean, pre-emphasised and windowed, at the places of one lane.
void place(const Framing& framing, int64_t frame, const Transform& transform, float* real, float* imaginary) {
  const float* x = framing.waveform + frame / framing.frames * framing.samples + frame % framing.frames * framing.stride;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t n = 0; n < framing.kernel; ++n) sum += x[n];
  const float mean = sum / float(framing.kernel);
  float previous = x[0] - mean;
  const auto weighed = [&](int64_t n) {
    const float centred = x[n] - mean, emphasised = centred - framing.preemphasis * previous;
    previous = centred;
    return emphasised * framing.window[n];
  };
  for (int64_t n = 0; n + 1 < framing.kernel; n += 2) {
    const int64_t point = transform.reversed[n / 2] * lanes;
    real[point] = weighed(n);
    imaginary[point] = weighed(n + 1);
  }
  if (framing.kernel % 2) real[transform.reversed[framing.kernel / 2] * lanes] = weighed(framing.kernel - 1);
}

void energies(const Framing& framing, const Transform& transform, const Bands& bands, int64_t start, int64_t end,
              int64_t total, float* out) {
  std::vector<float> real(transform.half * lanes), imaginary(real.size()), power((transform.half + 1) * lanes);
  for (int64_t chunk = start; chunk < end; ++chunk) {
    const int64_t first = chunk * lanes, here = std::min<int64_t>(lanes, total - first);
    std::fill(real.begin(), real.end(), 0.0f);
    std::fill(imaginary.begin(), imaginary.end(), 0.0f);
    for (int64_t l = 0; l < here; ++l) place(framing, first + l, transform, real.data() + l, imaginary.data() + l);
    transform.run(real.data(), imaginary.data());
    transform.powers(real.data(), imaginary.data(), power.data());
    for (int64_t band = 0; band < bands.bands; ++band) {
      float sums[lanes] = {};
      for (int64_t bin = bands.first[band]; bin < bands.end[band]; ++bin) {
        const float weight = bands.weights[bin * bands.bands + band];
#pragma omp simd
        for (int l = 0; l < lanes; ++l) sums[l] += weight * power[bin * lanes + l];
      }
      for (int64_t l = 0; l < here; ++l) out[(first + l) * bands.bands + band] = sums[l];
    }
  }
}

}  // namespace

extern "C" void mel_energies(const float* waveform, const float* window, const float* weights, float* out,
                             double preemphasis, int64_t rows, int64_t samples, int64_t frames, int64_t kernel, int64_t stride, int64_t half,
                             int64_t bands, int64_t threads) {
  const Framing framing{waveform, window, float(preemphasis), samples, frames, kernel, stride};
  const Transform transform(half);
  const Bands sums(weights, half + 1, bands);
  const int64_t total = rows * frames, chunks = (total + lanes - 1) / lanes;
  over_rows(chunks, total < few ? 1 : int(threads), [&](int64_t start, int64_t end) {
    energies(framing, transform, sums, start, end, total, out);
  });
}

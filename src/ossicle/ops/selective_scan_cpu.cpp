// The recurrence of selective state spaces on a CPU: forward and backward, every frame of it in one call.
//
// A thread takes a row's block of channels through all of time: their states (N, kLanes) lie in the innermost cache, and
// each state's line is a few vectors. Arrays are contiguous: frames and steps (B, T, E), rates (N, E), ways in and out
// (B, T, N). Of the states only those before each segment of frames are kept (B, S, N, E); the way back makes the others
// of a segment again.

#include <cmath>

#include "native.hpp"

namespace {

constexpr int64_t kLanes = 64;

struct Sizes {
  int64_t rows, frames, channels, states, segment;
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t segments() const { return (frames + segment - 1) / segment; }
};

inline float decay(float x) { return exponential(x); }
inline double decay(double x) { return std::exp(x); }

// What a block of channels reads and writes; behind the last channel there are zeros, which change nothing.
template <typename Real>
struct Block {
  const Sizes size;
  const int64_t row, first, width;
  std::vector<Real> rates;

  Block(const Sizes& size_, int64_t item, const Real* rates_NE)
      : size(size_),
        row(item / size_.blocks()),
        first(item % size_.blocks() * kLanes),
        width(std::min(kLanes, size_.channels - first)),
        rates(size_.states * kLanes, Real(0)) {
    for (int64_t n = 0; n < size.states; ++n)
      std::copy_n(rates_NE + n * size.channels + first, width, rates.data() + n * kLanes);
  }

  int64_t channel_place(int64_t t) const { return (row * size.frames + t) * size.channels + first; }
  int64_t state_place(int64_t t) const { return (row * size.frames + t) * size.states; }
  int64_t start_place(int64_t s, int64_t n) const {
    return ((row * size.segments() + s) * size.states + n) * size.channels + first;
  }
  void read(const Real* from_BTE, int64_t t, Real* to) const { std::copy_n(from_BTE + channel_place(t), width, to); }
  void write(const Real* from, int64_t t, Real* to_BTE) const { std::copy_n(from, width, to_BTE + channel_place(t)); }
};

// h_t = exp(step rate) h_{t-1} + step enter x of one state's line, and that exp.
template <typename Real>
inline void advance(const Real* step, const Real* brought, const Real* rate, Real enter, const Real* before, Real* after,
                    Real* kept) {
#pragma omp simd
  for (int64_t e = 0; e < kLanes; ++e) kept[e] = decay(step[e] * rate[e]);
#pragma omp simd
  for (int64_t e = 0; e < kLanes; ++e) after[e] = kept[e] * before[e] + brought[e] * enter;
}

template <typename Real>
void scan_all(const Real* x_BTE, const Real* step_BTE, const Real* rates_NE, const Real* enter_BTN, const Real* leave_BTN,
              Real* said_BTE, Real* starts_BSNE, const Sizes& size, int threads) {
  over_rows(size.rows * size.blocks(), threads, [=](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const Block<Real> block(size, item, rates_NE);
      std::vector<Real> states(size.states * kLanes, Real(0));
      alignas(64) Real x[kLanes] = {}, step[kLanes] = {}, brought[kLanes], said[kLanes], kept[kLanes];
      for (int64_t t = 0; t < size.frames; ++t) {
        if (t % size.segment == 0)
          for (int64_t n = 0; n < size.states; ++n)
            std::copy_n(states.data() + n * kLanes, block.width, starts_BSNE + block.start_place(t / size.segment, n));
        block.read(x_BTE, t, x);
        block.read(step_BTE, t, step);
        const Real* enter = enter_BTN + block.state_place(t);
        const Real* leave = leave_BTN + block.state_place(t);
#pragma omp simd
        for (int64_t e = 0; e < kLanes; ++e) {
          brought[e] = step[e] * x[e];
          said[e] = Real(0);
        }
        for (int64_t n = 0; n < size.states; ++n) {
          Real* state = states.data() + n * kLanes;
          advance(step, brought, block.rates.data() + n * kLanes, enter[n], state, state, kept);
          const Real share = leave[n];
#pragma omp simd
          for (int64_t e = 0; e < kLanes; ++e) said[e] += share * state[e];
        }
        block.write(said, t, said_BTE);
      }
    }
  });
}

// The gradients of one state's line at one frame; `carried` comes from the frame after and goes to the one before.
template <typename Real>
struct Line {
  const Real *x, *step, *brought, *grad, *rate, *before, *after, *kept;
  Real *carried, *rate_grad, *from_x, *from_step;

  void back(Real enter, Real leave, Real* enter_grad, Real* leave_grad) const {
    Real entered = Real(0), left = Real(0);
#pragma omp simd reduction(+ : entered, left)
    for (int64_t e = 0; e < kLanes; ++e) {
      const Real total = leave * grad[e] + carried[e];
      left += grad[e] * after[e];
      entered += total * brought[e];
      from_x[e] += total * enter;
      const Real along = total * kept[e];
      const Real changed = along * before[e];
      from_step[e] += changed * rate[e];
      rate_grad[e] += changed * step[e];
      carried[e] = along;
    }
    *enter_grad = entered;
    *leave_grad = left;
  }
};

// Gradients of the ways in and out are sums over channels: one part a block, (blocks, B, T, N); those of the rates are
// sums over frames, one part a row, (B, N, E).
template <typename Real>
void scan_backward_all(const Real* grad_BTE, const Real* x_BTE, const Real* step_BTE, const Real* rates_NE,
                       const Real* enter_BTN, const Real* leave_BTN, const Real* starts_BSNE, Real* x_grad_BTE,
                       Real* step_grad_BTE, Real* rates_grad_BNE, Real* enter_parts_CBTN, Real* leave_parts_CBTN,
                       const Sizes& size, int threads) {
  over_rows(size.rows * size.blocks(), threads, [=](int64_t begin, int64_t end) {
    const int64_t line = kLanes, frame_size = size.states * kLanes;
    std::vector<Real> states((size.segment + 1) * frame_size), kept(size.segment * frame_size);
    std::vector<Real> carried(frame_size), rates_grad(frame_size);
    std::vector<Real> x(size.segment * line), step(size.segment * line), brought(size.segment * line);
    for (int64_t item = begin; item < end; ++item) {
      const Block<Real> block(size, item, rates_NE);
      const int64_t part = item % size.blocks() * size.rows * size.frames * size.states;
      for (auto* buffer : {&carried, &rates_grad, &x, &step}) std::fill(buffer->begin(), buffer->end(), Real(0));
      for (int64_t s = size.segments() - 1; s >= 0; --s) {
        const int64_t start = s * size.segment, stop = std::min(size.frames, start + size.segment);
        std::fill(states.begin(), states.begin() + frame_size, Real(0));
        for (int64_t n = 0; n < size.states; ++n)
          std::copy_n(starts_BSNE + block.start_place(s, n), block.width, states.data() + n * line);
        for (int64_t t = start; t < stop; ++t) {
          const int64_t i = t - start;
          block.read(x_BTE, t, x.data() + i * line);
          block.read(step_BTE, t, step.data() + i * line);
          for (int64_t e = 0; e < line; ++e) brought[i * line + e] = step[i * line + e] * x[i * line + e];
          const Real* enter = enter_BTN + block.state_place(t);
          for (int64_t n = 0; n < size.states; ++n) {
            const int64_t place = i * frame_size + n * line;
            advance(step.data() + i * line, brought.data() + i * line, block.rates.data() + n * line, enter[n],
                    states.data() + place, states.data() + place + frame_size, kept.data() + place);
          }
        }
        for (int64_t t = stop - 1; t >= start; --t) {
          const int64_t i = t - start;
          alignas(64) Real grad[kLanes] = {}, from_x[kLanes] = {}, from_step[kLanes] = {};
          block.read(grad_BTE, t, grad);
          const Real* enter = enter_BTN + block.state_place(t);
          const Real* leave = leave_BTN + block.state_place(t);
          for (int64_t n = 0; n < size.states; ++n) {
            const int64_t place = i * frame_size + n * line;
            const Line<Real> back{x.data() + i * line, step.data() + i * line, brought.data() + i * line, grad,
                                  block.rates.data() + n * line, states.data() + place,
                                  states.data() + place + frame_size, kept.data() + place,
                                  carried.data() + n * line, rates_grad.data() + n * line, from_x, from_step};
            back.back(enter[n], leave[n], enter_parts_CBTN + part + block.state_place(t) + n,
                      leave_parts_CBTN + part + block.state_place(t) + n);
          }
          for (int64_t e = 0; e < line; ++e) {
            from_step[e] += from_x[e] * x[i * line + e];
            from_x[e] *= step[i * line + e];
          }
          block.write(from_x, t, x_grad_BTE);
          block.write(from_step, t, step_grad_BTE);
        }
      }
      for (int64_t n = 0; n < size.states; ++n)
        std::copy_n(rates_grad.data() + n * line, block.width,
                    rates_grad_BNE + (block.row * size.states + n) * size.channels + block.first);
    }
  });
}

}  // namespace

#define OSSICLE_EXPORT(REAL) \
  extern "C" void selective_scan_forward_##REAL( \
      const REAL* x, const REAL* step, const REAL* rates, const REAL* enter, const REAL* leave, REAL* said, REAL* starts, \
      int64_t rows, int64_t frames, int64_t channels, int64_t states, int64_t segment, int64_t threads) { \
    scan_all<REAL>(x, step, rates, enter, leave, said, starts, Sizes{rows, frames, channels, states, segment}, \
                   int(threads)); \
  } \
  extern "C" void selective_scan_backward_##REAL( \
      const REAL* grad, const REAL* x, const REAL* step, const REAL* rates, const REAL* enter, const REAL* leave, \
      const REAL* starts, REAL* x_grad, REAL* step_grad, REAL* rates_grad, REAL* enter_parts, REAL* leave_parts, \
      int64_t rows, int64_t frames, int64_t channels, int64_t states, int64_t segment, int64_t threads) { \
    scan_backward_all<REAL>(grad, x, step, rates, enter, leave, starts, x_grad, step_grad, rates_grad, enter_parts, \
                            leave_parts, Sizes{rows, frames, channels, states, segment}, int(threads)); \
  }

OSSICLE_EXPORT(float)
OSSICLE_EXPORT(double)

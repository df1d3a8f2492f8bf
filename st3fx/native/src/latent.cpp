// What Python calls for a training step: all sites at once, in tasks of a few pages each.
#include "latent.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu.h"
#include "parallel.h"

#define ST3FX_EXPORT extern "C" __attribute__((visibility("default")))

namespace st3fx::latent {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::avx512vnni:
    case Isa::avx512: return avx512_kernels;
    case Isa::avxvnni:
    case Isa::avx2: return avx2_kernels;
    default: break;
  }
#endif
  return baseline_kernels;
}

/// Items `first` to `first + size` of the site at `site`.
struct Task {
  int64_t site, first, size;
};

/// Cuts each site's items into tasks of `step(site)` items.
template <class Count, class Step>
std::vector<Task> tasks_of(int64_t sites, const Count& count, const Step& step) {
  std::vector<Task> tasks;
  for (int64_t site = 0; site < sites; site++)
    for (int64_t first = 0; first < count(site); first += step(site))
      tasks.push_back({site, first, std::min(step(site), count(site) - first)});
  return tasks;
}

Band band_of(float low, float high) {
  Band band;
  std::memcpy(&band.low, &low, sizeof low);
  std::memcpy(&band.high, &high, sizeof high);
  return band;
}

}  // namespace
}  // namespace st3fx::latent

using namespace st3fx;
using namespace st3fx::latent;

/// Weights of one site and what divides their magnitudes; `size` floats in one piece of memory.
struct Scored {
  const float* weights;
  int64_t size;
  float scale;
};

/// How the groups of a weight lie: `size` of `extent` weights that are `inner` floats apart, the last
/// group perhaps shorter; `kept` of them are not pruned together with the others. No `size`: none.
/// Below 0 `kept` says that groups are long, each in one piece of memory.
struct Groups {
  int64_t extent, inner;
  int32_t size, kept;
};

/// One site's latent and effective weights: `channels` times `length` floats in one piece.
struct Channels {
  const float* weight;
  float* out;
  int64_t channels, length;
  float threshold;
  int32_t rescale;
  Groups groups;
};

/// The weights of one site, `rows` times `extent` times `inner` floats in one piece, and room for
/// the magnitudes of their groups, in this order; or, `spread`, of each weight.
struct Measured {
  const float* weight;
  float* out;
  int64_t rows;
  Groups groups;
  int32_t spread;
};

namespace {

/// Measures one row of groups, the short one at its end with them.
void measure_row(const Kernels& run, const float* weight, const Groups& groups, bool spread,
                 float* out) {
  const auto [extent, inner, size, kept] = groups;
  const int64_t whole = extent / size, rest = extent % size;
  run.measure(weight, whole, inner, size, kept, spread, out);
  if (rest)
    run.measure(weight + whole * size * inner, 1, inner, static_cast<int>(rest), kept, spread,
                out + whole * inner * (spread ? size : 1));
}

}  // namespace

struct Bytes {
  const uint8_t* data;
  int64_t size;
};

/// Weights that are compared with thresholds: `size` floats in one piece of memory, rows of `length`
/// with a threshold each in `thresholds`, or, where that is null, all with one.
struct Rows {
  const float* weight;
  float* out;
  int64_t size, length;
  const float* thresholds;
  float threshold;
};

/// Rows with the gradient of their effective weights and, where a threshold has one, room for that
/// of the same shape, which is to be added up.
struct Gradients {
  Rows rows;
  const float* grad;
  float* along;
  float factor;
  Rule rule;
};

namespace {

/// The hash of each site from those of its tasks.
void join(const std::vector<Task>& tasks, const std::vector<uint64_t>& found, int64_t count,
          uint64_t* hashes) {
  std::fill_n(hashes, count, 0);
  for (size_t i = 0; i < tasks.size(); i++) {
    uint64_t& hash = hashes[tasks[i].site];
    hash = hash * 0xd6e8feb86659fd93u + found[i];
  }
}

/// Calls `use(threshold, offset, size)` for the parts of rows that a task has.
template <class Use>
void for_each_row(const Rows& rows, const Task& task, const Use& use) {
  if (!rows.thresholds) return use(rows.threshold, task.first, task.size);
  for (int64_t i = task.first, end = task.first + task.size; i < end;) {
    const int64_t row = i / rows.length, size = std::min((row + 1) * rows.length, end) - i;
    use(rows.thresholds[row], i, size);
    i += size;
  }
}

/// Tasks of one piece each.
template <class Size>
std::vector<Task> pieces_of(int64_t count, const Size& size) {
  return tasks_of(count, size, [](int64_t) { return kPiece; });
}

/// The tasks of one site, for `st3fx_gather` and `st3fx_scatter`.
std::vector<Task> pieces_of(const Rows& rows) {
  return pieces_of(1, [&](int64_t) { return rows.size; });
}

}  // namespace

/// Tallies the scores of each site around the band from `low` to `high` (0 or more), and collects
/// those in it with the position of their site, in any order, while there is room for all.
/// Gives the number in the band; of more than `room` nothing is collected in full. With `hashes`
/// these get what `st3fx_digest` gives of the weights, which are read once for both.
ST3FX_EXPORT int64_t st3fx_scan(const Scored* sites, int64_t count, float low, float high,
                                int64_t room, Tally* tallies, float* scores, int32_t* owners,
                                uint64_t* hashes, Parallel parallel, unsigned threads) {
  const Kernels& run = kernels();
  const Band band = band_of(low, high);
  const auto tasks = pieces_of(count, [&](int64_t site) { return sites[site].size; });
  std::vector<Tally> found(tasks.size());
  std::vector<uint64_t> hashed(hashes ? tasks.size() : 0);
  std::atomic<int64_t> inside{0};
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    const Task& task = tasks[i];
    const Scored& site = sites[task.site];
    const float* values = site.weights + task.first;
    if (hashes)
      hashed[i] = run.digest(reinterpret_cast<const uint8_t*>(values),
                             task.size * static_cast<int64_t>(sizeof(float)));
    float scaled[kPiece];
    if (site.scale != 1.0f) {
      run.score(values, task.size, site.scale, scaled);
      values = scaled;
    }
    found[i] = run.count(values, task.size, band);
    if (!found[i].inside) return;
    const int64_t place = inside.fetch_add(found[i].inside);
    if (place + found[i].inside > room) return;
    run.collect(values, task.size, band, scores + place);
    std::fill_n(owners + place, found[i].inside, static_cast<int32_t>(task.site));
  });
  std::fill_n(tallies, count, Tally());
  for (size_t i = 0; i < tasks.size(); i++) {
    Tally& tally = tallies[tasks[i].site];
    tally.below += found[i].below;
    tally.inside += found[i].inside;
    tally.largest = std::max(tally.largest, found[i].largest);
  }
  if (hashes) join(tasks, hashed, count, hashes);
  return inside;
}

/// Computes the effective weights of all sites by a hard threshold.
ST3FX_EXPORT void st3fx_hard_threshold(const Rows* sites, int64_t count, Parallel parallel,
                                       unsigned threads) {
  const Kernels& run = kernels();
  const auto tasks = pieces_of(count, [&](int64_t site) { return sites[site].size; });
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    const Rows& rows = sites[tasks[i].site];
    for_each_row(rows, tasks[i], [&](float threshold, int64_t at, int64_t size) {
      run.harden(rows.weight + at, size, threshold, rows.out + at);
    });
  });
}

/// How many weights of each site are above their thresholds.
ST3FX_EXPORT void st3fx_left(const Rows* sites, int64_t count, int64_t* left, Parallel parallel,
                             unsigned threads) {
  const Kernels& run = kernels();
  const auto tasks = pieces_of(count, [&](int64_t site) { return sites[site].size; });
  std::vector<int64_t> found(tasks.size());
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    const Rows& rows = sites[tasks[i].site];
    for_each_row(rows, tasks[i], [&](float threshold, int64_t at, int64_t size) {
      found[i] += run.left(rows.weight + at, size, threshold);
    });
  });
  std::fill_n(left, count, 0);
  for (size_t i = 0; i < tasks.size(); i++) left[tasks[i].site] += found[i];
}

/// Computes the gradient of one site's latent weight, and what that of its threshold is a sum of.
ST3FX_EXPORT void st3fx_gradient(const Gradients* site, Parallel parallel, unsigned threads) {
  const Kernels& run = kernels();
  const Rows& rows = site->rows;
  const auto tasks = pieces_of(rows);
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    for_each_row(rows, tasks[i], [&](float threshold, int64_t at, int64_t size) {
      run.pass_back(site->rule, site->grad + at, rows.weight + at, size, threshold, site->factor,
                    rows.out + at, site->along ? site->along + at : nullptr);
    });
  });
}

/// Writes the threshold over the magnitude of each weight that is left into `out`, in their order.
/// `starts`, one for each piece, gets where a piece's begin. Gives their number. NaN is left.
ST3FX_EXPORT int64_t st3fx_gather(const Rows* site, int64_t* starts, Parallel parallel,
                                  unsigned threads) {
  const Kernels& run = kernels();
  const auto tasks = pieces_of(*site);
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    starts[i] = run.remaining(site->weight + tasks[i].first, tasks[i].size, site->threshold);
  });
  int64_t total = 0;
  for (size_t i = 0; i < tasks.size(); i++) total += std::exchange(starts[i], total);
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    run.gather(site->weight + tasks[i].first, tasks[i].size, site->threshold,
               site->out + starts[i]);
  });
  return total;
}

/// Writes effective weights: those that `st3fx_gather` has found times their factors, and zeros.
ST3FX_EXPORT void st3fx_scatter(const Rows* site, const int64_t* starts, const float* factors,
                                Parallel parallel, unsigned threads) {
  const Kernels& run = kernels();
  const auto tasks = pieces_of(*site);
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    run.scatter(site->weight + tasks[i].first, tasks[i].size, site->threshold,
                factors + starts[i], site->out + tasks[i].first);
  });
}

/// Computes the effective weights of all sites by ST-3's formula, thresholds being active.
ST3FX_EXPORT void st3fx_soft_threshold(const Channels* sites, int64_t count, Parallel parallel,
                                       unsigned threads) {
  const Kernels& run = kernels();
  const auto tasks = tasks_of(
      count, [&](int64_t site) { return sites[site].channels; },
      [&](int64_t site) { return std::max<int64_t>(1, kPiece / sites[site].length); });
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    const Task& task = tasks[i];
    const Channels& site = sites[task.site];
    for (int64_t k = task.first; k < task.first + task.size; k++) {
      const float* weight = site.weight + k * site.length;
      float* out = site.out + k * site.length;
      if (site.groups.size) {
        Shares shares;
        const auto [extent, inner, size, kept] = site.groups;
        const int64_t whole = extent / size, rest = extent % size, end = whole * size * inner;
        for (int64_t i = 0; i < site.length; i += extent * inner) {
          run.soften_blocks(weight + i, whole, inner, size, kept, site.threshold, out + i, shares);
          if (rest)
            run.soften_blocks(weight + i + end, 1, inner, static_cast<int>(rest), kept,
                              site.threshold, out + i + end, shares);
        }
        run.finish(shares, site.length, site.rescale, out);
      } else {
        run.soften(weight, site.length, site.threshold, site.rescale, out);
      }
    }
  });
}

/// Computes the magnitudes of the groups of all sites.
ST3FX_EXPORT void st3fx_measure(const Measured* sites, int64_t count, Parallel parallel,
                                unsigned threads) {
  const Kernels& run = kernels();
  // A task is some whole rows; a row that is long is cut between two groups.
  const auto step = [&](int64_t site) {
    const Groups& groups = sites[site].groups;
    return std::max<int64_t>(1, kPiece / (groups.size * groups.inner));
  };
  const auto blocks_of = [&](int64_t site) {
    return (sites[site].groups.extent + sites[site].groups.size - 1) / sites[site].groups.size;
  };
  const auto tasks = tasks_of(
      count, [&](int64_t site) { return sites[site].rows * blocks_of(site); }, step);
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    const Task& task = tasks[i];
    const Measured& site = sites[task.site];
    const Groups& groups = site.groups;
    const int64_t blocks = blocks_of(task.site), row = groups.extent * groups.inner;
    for (int64_t at = task.first, end = task.first + task.size; at < end;) {
      const int64_t block = at % blocks, number = std::min(blocks - block, end - at);
      Groups piece = groups;
      piece.extent = std::min(number * groups.size, groups.extent - block * groups.size);
      const int64_t start = at / blocks * row + block * groups.size * groups.inner;
      measure_row(run, site.weight + start, piece, site.spread,
                  site.out + (site.spread ? start : at * groups.inner));
      at += number;
    }
  });
}

/// A hash of each range of bytes.
ST3FX_EXPORT void st3fx_digest(const Bytes* ranges, int64_t count, uint64_t* hashes,
                               Parallel parallel, unsigned threads) {
  constexpr int64_t kStep = kPiece * sizeof(float);
  const Kernels& run = kernels();
  const auto tasks = tasks_of(
      count, [&](int64_t range) { return ranges[range].size; }, [&](int64_t) { return kStep; });
  std::vector<uint64_t> found(tasks.size());
  for_each(tasks.size(), parallel, threads, [&](int64_t i) {
    found[i] = run.digest(ranges[tasks[i].site].data + tasks[i].first, tasks[i].size);
  });
  join(tasks, found, count, hashes);
}

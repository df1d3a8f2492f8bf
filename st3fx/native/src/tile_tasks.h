// How the outputs of a run fall into tasks.
#pragma once

#include <algorithm>

#include "ort.h"
#include "scratch.h"

namespace st3fx {

constexpr int64_t kEnoughTasks = 8;  ///< With fewer tiles their rows are split too.

/// A convolution whose tiles read packed input.
struct TiledInput {
  int64_t tiles;           ///< Of all images.
  int64_t parts;           ///< Of the rows of a tile.
  int64_t channels;        ///< Of the input.
  int64_t channel_floats;  ///< Of one packed channel of a tile.
};

/// Calls `run_parts(tile, begin, end, taps)` for all parts of all tiles. `taps` is where a tile's
/// input lies: what `direct(tile)` gives if that is not null, else null where the callee packs it,
/// else what `pack(tile, begin, end, taps)` has put there for channels [begin, end).
template <class Direct, class Pack, class RunParts>
void run_tiles(const Run& run, const TiledInput& in, const Direct& direct, const Pack& pack,
               const RunParts& run_parts) {
  constexpr int64_t kPackTasks = 4;  // shares of a tile's channels
  if (in.tiles == 0) return;
  const int64_t shares = std::min(in.parts, (kEnoughTasks + in.tiles - 1) / in.tiles);
  auto run_share = [&](int64_t task, const float* taps) {
    const int64_t share = task % shares;
    run_parts(task / shares, in.parts * share / shares, in.parts * (share + 1) / shares, taps);
  };
  if (shares == 1 || direct(0))
    return run.parallel_for(in.tiles * shares,
                            [&](int64_t task) { run_share(task, direct(task / shares)); });
  // Few tiles: their input is packed once, by all threads, and then shared.
  const int64_t tile_floats = in.channels * in.channel_floats;
  const Scratch packed(in.tiles * tile_floats);
  run.parallel_for(in.tiles * kPackTasks, [&](int64_t task) {
    const int64_t tile = task / kPackTasks, share = task % kPackTasks;
    const int64_t begin = in.channels * share / kPackTasks;
    const int64_t end = in.channels * (share + 1) / kPackTasks;
    pack(tile, begin, end, packed.data() + tile * tile_floats + begin * in.channel_floats);
  });
  run.parallel_for(in.tiles * shares, [&](int64_t task) {
    run_share(task, packed.data() + task / shares * tile_floats);
  });
}

/// Calls `run_chunk(tile, begin, end)` for all channels of all tiles, so many at a time that their
/// packed input stays in the L2 cache.
template <class RunChunk>
void run_chunks(const Run& run, int64_t tiles, int64_t channels, int64_t channel_floats,
                const RunChunk& run_chunk) {
  constexpr int64_t kChunkFloats = 16 * 1024;
  if (tiles == 0) return;
  const int64_t chunk = std::clamp<int64_t>(kChunkFloats / channel_floats, 1, channels);
  const int64_t chunks = (channels + chunk - 1) / chunk;
  run.parallel_for(tiles * chunks, [&](int64_t task) {
    const int64_t begin = task % chunks * chunk;
    run_chunk(task / chunks, begin, std::min(begin + chunk, channels));
  });
}

}  // namespace st3fx

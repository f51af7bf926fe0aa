// Where the warps of a CTA meet once a tile for K and once for V, SM80 family: each says when it is done, and waits for the others later.
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/block_iterator.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"

// Index: kKeyData or kValueData. Phases alternate as the places of tiles do. Without kApart the warps meet otherwise, and
// only lanes wait for each other here.
template<int kThreads, bool kApart>
struct TileBarriers {
    // One thread calls this; a barrier must follow.
    static DEVICE void Init()
    {
        if (kApart) {
            mbarrier_init(At<kKeyData>(), kThreads);
            mbarrier_init(At<kValueData>(), kThreads);
        }
    }

    // Every lane arrives: racecheck does not follow one that speaks for its warp, and that is no faster. The interpreter's mbarriers order
    // warps, each of them up to its last __syncwarp.
    template<int Index>
    static DEVICE void Arrive()
    {
        __syncwarp();
        if (kApart) {
            mbarrier_arrive(At<Index>());
        }
    }

    template<int Index>
    static DEVICE void Wait(bool odd)
    {
        if (kApart) {
            mbarrier_wait_parity(At<Index>(), odd);
        }
    }

private:
    template<int Index>
    static DEVICE u32 At()
    {
        __shared__ u64 barrier;
        return shared_address(&barrier);
    }
};

// BaseGmemIterator and BaseSmemIterator: what every family's iterators share.
#pragma once

#include "core/types.cuh"

// Global to shared memory: a thread's part of a tile is Map's, its places are SmemLayout's.
template<class T, class Map_, class SmemLayout_>
struct BaseGmemIterator {
    using ElementType = T;
    using Map = Map_;
    using SmemLayout = SmemLayout_;
    static constexpr int kIterCount = Map::kIterS;

    u32 smem_;  // where the tile lies; from where its slot begins, if a copy is told the slot

    DEVICE void SetSmem(u32 smem) { smem_ = smem; }
};

// Shared memory to registers.
template<class T, class SmemLayout_>
struct BaseSmemIterator {
    using ElementType = T;
    using SmemLayout = SmemLayout_;

    u32 smem_;

    explicit DEVICE BaseSmemIterator(u32 smem): smem_(smem) {}
};

// Data and the parameters of its rows, moved together.
template<class Iterator0, class Iterator1>
struct CombinedIterator {
    Iterator0 iterator0_;
    Iterator1 iterator1_;

    DEVICE void SetSmem(u32 smem0, u32 smem1)
    {
        iterator0_.SetSmem(smem0);
        iterator1_.SetSmem(smem1);
    }

    template<bool joined, class... Args>
    DEVICE void Prefetch(const Args&... args) const
    {
        iterator0_.template Prefetch<joined>(args...);
        iterator1_.template Prefetch<joined>(args...);
    }

    // What waits in registers, where tiles go through them.
    struct Fragment {
        typename Iterator0::Fragment frag0;
        typename Iterator1::Fragment frag1;
    };

    static DEVICE constexpr int portions() { return Iterator0::portions(); }

    template<bool flag, class CacheIter, class... Args>
    DEVICE void Load(const CacheIter& cache, Fragment& frag, const Args&... args) const
    {
        iterator0_.template Load<flag>(cache, frag.frag0, args...);
        iterator1_.template Load<flag>(cache, frag.frag1, args...);
    }

    template<class... Args>
    DEVICE void Save(const Fragment& frag, const Args&... args) const
    {
        iterator0_.Save(frag.frag0, args...);
        iterator1_.Save(frag.frag1, args...);
    }
};

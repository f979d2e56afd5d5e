"""Real faults: full and failing disks, damaged files, a clock that jumps, a lock held elsewhere."""

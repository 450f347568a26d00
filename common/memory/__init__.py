"""The memory-control layer: budget, footprint, planner, walls, meter and record. It imports none of its siblings."""
